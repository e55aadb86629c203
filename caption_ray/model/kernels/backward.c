/* The loop backward; see problem.h.

   With the gradients d of a word's state and cell after it, and those of the LSTM's gates:

     dz = W_z^T d(i, f, g, o)       da_r = b dz . f_r          db' = (1 - b) sum_r a_r da_r, before the sigmoid
     ds_r = a_r (da_r - sum a da)   dk_r = sum over words of ds_r v (1 - tanh^2)      dq = sum over r of the same
     dv = sum ds_r tanh             dh = W_h^T d(i, f, g, o) + U^T dq + w db'

   Of a fraction x = (1 - tanh) / 2: tanh = 1 - 2x, 1 - tanh^2 = 4 x (1 - x). */

#include "problem.h"

#define CHUNK 8 /* regions whose products are summed up at a time: a sum in a register each */

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

/* out[r] = values[r] . with for `count` regions r, a constant. */
INLINE void dot(const int count, const real *values, const float *with, int64_t size, float *out) {
    vec sum[CHUNK];
#pragma GCC unroll 8
    for (int r = 0; r < count; r++) sum[r] = (vec){0};
    for (int64_t d = 0; d < size; d += LANES) {
        vec factor = load_exact(with + d);
#pragma GCC unroll 8
        for (int r = 0; r < count; r++) sum[r] += factor * load(values + r * size + d);
    }
    for (int r = 0; r < count; r++) out[r] = sum_lanes(sum[r]);
}

/* All gradients that go through the attention of one word. */
static void attend_back(const struct problem *p, int64_t word, int64_t row, int64_t picture, real *d_context) {
    int64_t regions = p->regions, size = p->attention, value = p->value;
    const float *keys = p->key_powers + picture * regions * size, *query = p->query_powers + word * size;
    const real *values = p->values + picture * regions * value, *weights = p->weights + word * regions;
    float *d_keys = p->d_keys + picture * regions * size, *d_score = p->d_score + picture * size;
    float d_weights[regions], d_average[value], d_query[size], open = p->opening[word], mean = 0, total = 0;
    const float *d_entry = p->d_inputs + row * (p->input + p->hidden);
    const real *d_gates = p->d_gates + word * value;
    for (int64_t d = 0; d < value; d++)
        d_average[d] = open * (p->input ? d_entry[d] : widen(d_gates[d]));
    if (d_context)
        for (int64_t d = 0; d < value; d++) d_context[d] = narrow(d_average[d]);
    for (int64_t r = 0; r < regions; r += CHUNK)
        if (regions - r >= CHUNK)
            dot(CHUNK, values + r * value, d_average, value, d_weights + r);
        else
            for (int64_t last = r; last < regions; last++)
                dot(1, values + last * value, d_average, value, d_weights + last);
    for (int64_t r = 0; r < regions; r++) total += widen(weights[r]);
    for (int64_t r = 0; r < regions; r++) mean += widen(weights[r]) * d_weights[r];
    p->d_opening[word] = (1 - open) * mean;
    if (p->d_weights) {
        for (int64_t r = 0; r < regions; r++) d_weights[r] += widen(p->d_weights[word * regions + r]);
        mean = 0;
        for (int64_t r = 0; r < regions; r++) mean += widen(weights[r]) * d_weights[r];
    }
    for (int64_t a = 0; a < size; a++) d_query[a] = 0;
    for (int64_t r = 0; r < regions; r++) {
        float d = widen(weights[r]) * (d_weights[r] - mean / total);
        for (int64_t a = 0; a < size; a += LANES) {
            vec x = fraction(load_exact(keys + r * size + a), load_exact(query + a)), slope = d * x * (1 - x);
            add_to(d_keys + r * size + a, slope);
            add_to(d_query + a, slope);
            add_to(d_score + a, d * x);
        }
    }
    for (int64_t a = 0; a < size; a++) p->d_query[word * size + a] = narrow(4 * p->score[a] * d_query[a]);
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
            for (int64_t picture = 0; picture < p->active_pictures[step]; picture++)
                for (int64_t place = 0; place < p->per_picture; place++) {
                    int64_t row = p->captions[picture * p->per_picture + place];
                    int64_t slot = (picture * p->steps + step) * p->per_picture + place;
                    if (row >= rows) break;
                    attend_back(p, at + row, row, picture, p->d_contexts ? p->d_contexts + slot * p->value : 0);
                }
        }
#pragma omp for
        for (int64_t j = 0; j < p->hidden; j += PANEL) add_up_state(p, 0, 0, j);
        give_back_tiles();
    }
}
