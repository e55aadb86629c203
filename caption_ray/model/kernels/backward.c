/* The loop backward; see problem.h.

   With the gradients d of a word's state and cell after it, and those of the LSTM's gates:

     dz = W_z^T d(i, f, g, o)       da_r = b dz . f_r          db' = (1 - b) sum_r a_r da_r, before the sigmoid
     ds_r = a_r (da_r - sum a da)   dk_r = sum over words of ds_r v (1 - tanh^2)      dq = sum over r of the same
     dv = sum ds_r tanh             dh = W_h^T d(i, f, g, o) + U^T dq + w db'

   Of a fraction x = (1 - tanh) / 2: tanh = 1 - 2x, 1 - tanh^2 = 4 x (1 - x). */

#include "problem.h"

#define CHUNK 8 /* regions whose products are summed up at a time; half of them for many words */

/* Lay the weights of both products out by their inputs, which are the outputs here. */
static void lay_out_weights(const struct problem *p) {
    int64_t hidden = p->hidden, input = p->input;
#pragma omp for nowait
    for (int64_t o = 0; o < hidden; o += PANEL)
        lay_out(p->query_panels + o * p->attention, p->query + o, 1, hidden, p->attention);
#pragma omp for
    for (int64_t o = 0; o < input + hidden; o += PANEL) {
        panel *to = p->gate_panels + o * 4 * hidden;
        if (o < input)
            lay_out(to, p->context + o, 1, p->context_stride, 4 * hidden);
        else
            lay_out(to, p->state + o - input, 1, hidden, 4 * hidden);
    }
}

/* The state's gradient before a step, for its units j to j + PANEL. */
static void add_up_state(const struct problem *p, int64_t step, int64_t at, int64_t j) {
    int64_t rows = p->active[step], size = p->attention, wide = p->input + p->hidden;
    for (int64_t first = 0; first < rows; first += TILE) {
        int64_t count = smaller(TILE, rows - first);
        float product[TILE][PANEL];
        multiply(count, p->query_panels + j * size, size, p->d_query + (at + first) * size, size, product);
        for (int64_t t = 0; t < count; t++) {
            const float *direct = p->d_inputs + (first + t) * wide + p->input + j;
            float *sum = p->d_state + (first + t) * p->hidden + j, opening = p->d_opening[at + first + t];
            for (int64_t k = 0; k < PANEL; k++) sum[k] = direct[k] + product[t][k] + opening * p->gate[j + k];
        }
    }
}

/* The gradients of the LSTM's gates, and of the cell before the step, for its units j to j + PANEL. */
static void retreat(const struct problem *p, int64_t step, int64_t at, int64_t j) {
    int64_t hidden = p->hidden;
    for (int64_t row = 0; row < p->active[step]; row++) {
        int64_t word = at + row;
        const float *before = cell_before(p, step, word, row) + j, *after = p->cells + word * hidden + j;
        const float *gates = p->gates + word * 4 * hidden + j, *d_state = p->d_state + row * hidden + j;
        float *d_cell = p->d_cell + row * hidden + j, given[PANEL] = {0};
        real *d_gates = p->d_gates + word * 4 * hidden + j;
        if (p->d_hiddens)
            for (int64_t k = 0; k < PANEL; k++) given[k] = widen(p->d_hiddens[word * hidden + j + k]);
#pragma omp simd
        for (int64_t k = 0; k < PANEL; k++) {
            float enter = gates[k], forget = gates[hidden + k];
            float candidate = gates[2 * hidden + k], leave = gates[3 * hidden + k];
            float shown = hyperbolic_tangent(after[k]), d_out = d_state[k] + given[k];
            float d_after = d_cell[k] + d_out * leave * (1 - shown * shown);
            d_gates[k] = narrow(d_after * candidate * enter * (1 - enter));
            d_gates[hidden + k] = narrow(d_after * before[k] * forget * (1 - forget));
            d_gates[2 * hidden + k] = narrow(d_after * enter * (1 - candidate * candidate));
            d_gates[3 * hidden + k] = narrow(d_out * shown * leave * (1 - leave));
            d_cell[k] = d_after * forget;
        }
    }
}

/* The gradients of (z, h) by the LSTM's gates, for entries o to o + PANEL. */
static void differentiate_inputs(const struct problem *p, int64_t rows, int64_t at, int64_t o) {
    int64_t gates = 4 * p->hidden, wide = p->input + p->hidden;
    for (int64_t first = 0; first < rows; first += TILE) {
        int64_t count = smaller(TILE, rows - first);
        float product[TILE][PANEL];
        multiply(count, p->gate_panels + o * gates, gates, p->d_gates + (at + first) * gates, gates, product);
        for (int64_t t = 0; t < count; t++) {
            float *entry = p->d_inputs + (first + t) * wide + o;
            memcpy(entry, product[t], sizeof product[t]);
            if (p->d_attended && o < p->input)
                for (int64_t k = 0; k < PANEL; k++)
                    entry[k] += widen(p->d_attended[(at + first + t) * p->input + o + k]);
        }
    }
}

/* out[k][r] = values[r] . with[k] for `words` words k and `count` regions r, both constants: sums are registers. */
INLINE void dot(const int words, const int count, const real *values, const float *with, int64_t size, float *out,
                int64_t stride) {
    vec sum[TOGETHER_SAID][CHUNK];
#pragma GCC unroll 8
    for (int k = 0; k < words; k++)
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) sum[k][r] = (vec){0};
    for (int64_t d = 0; d < size; d += LANES) {
        vec value[CHUNK];
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) value[r] = load(values + r * size + d);
#pragma GCC unroll 8
        for (int k = 0; k < words; k++) {
            vec factor = load_exact(with + k * size + d);
#pragma GCC unroll 8
            for (int r = 0; r < count; r++) sum[k][r] += factor * value[r];
        }
    }
    for (int k = 0; k < words; k++)
        for (int r = 0; r < count; r++) out[k * stride + r] = sum_lanes(sum[k][r]);
}

INLINE void dots(const int words, const int chunk, const real *values, const float *with, int64_t size, float *out,
                 int64_t regions) {
    int64_t r = 0;
    for (; r + chunk <= regions; r += chunk) dot(words, chunk, values + r * size, with, size, out + r, regions);
    for (; r < regions; r++) dot(words, 1, values + r * size, with, size, out + r, regions);
}

/* out (count, regions): the products of `with` (count, size) with the values of all regions. */
static void dots_of(int64_t count, const real *values, const float *with, int64_t size, float *out, int64_t regions) {
    switch (count) {
    case 1: dots(1, CHUNK, values, with, size, out, regions); break;
    case 2: dots(2, CHUNK, values, with, size, out, regions); break;
    case 3: dots(3, CHUNK / 2, values, with, size, out, regions); break;
    case 4: dots(4, CHUNK / 2, values, with, size, out, regions); break;
    default: dots(5, CHUNK / 2, values, with, size, out, regions);
    }
}

/* From the gradients of a word's weights (R) those of its scores, and of its context's gate. */
static void differentiate_weights(const struct problem *p, int64_t word, float *d_weights) {
    int64_t regions = p->regions;
    const real *weights = p->weights + word * regions;
    float mean = 0, total = 0;
    for (int64_t r = 0; r < regions; r++) total += widen(weights[r]);
    for (int64_t r = 0; r < regions; r++) mean += widen(weights[r]) * d_weights[r];
    p->d_opening[word] = (1 - p->opening[word]) * mean;
    if (p->d_weights) {
        for (int64_t r = 0; r < regions; r++) d_weights[r] += widen(p->d_weights[word * regions + r]);
        mean = 0;
        for (int64_t r = 0; r < regions; r++) mean += widen(weights[r]) * d_weights[r];
    }
    for (int64_t r = 0; r < regions; r++) d_weights[r] = widen(weights[r]) * (d_weights[r] - mean / total);
}

/* All gradients that go through the attention of `count` words of one picture. */
static void attend_back(const struct problem *p, const struct said *said, int64_t count, int64_t picture) {
    int64_t regions = p->regions, size = p->attention, value = p->value;
    const float *keys = p->key_powers + picture * regions * size;
    float *d_keys = p->d_keys + picture * regions * size, *d_score = p->d_score + picture * size;
    float d_scores[count * regions], d_averages[count * value], d_queries[count * size];
    for (int64_t k = 0; k < count; k++) {
        const float *d_entry = p->d_inputs + said[k].row * (p->input + p->hidden);
        const real *d_gates = p->d_gates + said[k].word * value;
        float open = p->opening[said[k].word], *d_average = d_averages + k * value;
        for (int64_t d = 0; d < value; d++)
            d_average[d] = open * (p->input ? d_entry[d] : widen(d_gates[d]));
        if (p->d_contexts)
            for (int64_t d = 0; d < value; d++) p->d_contexts[said[k].slot * value + d] = narrow(d_average[d]);
    }
    dots_of(count, p->values + picture * regions * value, d_averages, value, d_scores, regions);
    for (int64_t k = 0; k < count; k++) differentiate_weights(p, said[k].word, d_scores + k * regions);
    memset(d_queries, 0, sizeof d_queries);
    for (int64_t r = 0; r < regions; r++)
        for (int64_t a = 0; a < size; a += LANES) {
            vec key = load_exact(keys + r * size + a), d_key = {0}, by_score = {0};
            for (int64_t k = 0; k < count; k++) {
                vec x = fraction(key, load_exact(p->query_powers + said[k].word * size + a));
                vec d = x * d_scores[k * regions + r], slope = d - d * x;
                d_key += slope;
                by_score += d;
                add_to(d_queries + k * size + a, slope);
            }
            add_to(d_keys + r * size + a, d_key);
            add_to(d_score + a, by_score);
        }
    for (int64_t k = 0; k < count; k++)
        for (int64_t a = 0; a < size; a++)
            p->d_query[said[k].word * size + a] = narrow(4 * p->score[a] * d_queries[k * size + a]);
}

/* d_keys is left to be multiplied by 4 v, d_score by -2. */
void backward(const struct problem *p) {
    int64_t last = p->steps - 1, words = 0;
    for (int64_t step = 0; step < last; step++) words += p->active[step];
#pragma omp parallel num_threads(p->threads)
    {
        lay_out_weights(p);
        for (int64_t step = last, at = words; step >= 0; at -= step ? p->active[step - 1] : 0, step--) {
            int64_t rows = p->active[step];
#pragma omp for
            for (int64_t j = 0; j < p->hidden; j += PANEL) {
                if (step < last) add_up_state(p, step + 1, at + rows, j);
                retreat(p, step, at, j);
            }
#pragma omp for
            for (int64_t o = 0; o < p->input + p->hidden; o += PANEL) differentiate_inputs(p, rows, at, o);
#pragma omp for schedule(dynamic)
            for (int64_t picture = 0; picture < p->active_pictures[step]; picture++) {
                struct said said[TOGETHER_SAID];
                for (int64_t place = 0, count; (count = words_of(p, step, at, picture, place, said)); place += count)
                    attend_back(p, said, count, picture);
            }
        }
#pragma omp for
        for (int64_t j = 0; j < p->hidden; j += PANEL) add_up_state(p, 0, 0, j);
        give_back_tiles();
    }
}
