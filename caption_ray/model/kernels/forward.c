/* The loop forward; see problem.h. */

#include "problem.h"

/* Lay the weights of both products out by their outputs. */
static void lay_out_weights(const struct problem *p) {
    int64_t hidden = p->hidden, input = p->input;
#pragma omp for nowait
    for (int64_t o = 0; o < p->attention; o += PANEL)
        lay_out(p->query_panels + o * hidden, p->query + o * hidden, hidden, 1, hidden);
#pragma omp for nowait
    for (int64_t o = 0; o < 4 * hidden; o += PANEL) {
        panel *to = p->gate_panels + o * (input + hidden);
        if (input) lay_out(to, p->context + o * p->context_stride, p->context_stride, 1, input);
        lay_out(to + input * PANEL, p->state + o * hidden, hidden, 1, hidden);
    }
}

/* Attention of one word: `weights` of it, as later products see them, and its context's gate. */
static void weigh(const struct problem *p, int64_t word, int64_t picture, real *spread, float *weights) {
    int64_t regions = p->regions, size = p->attention, hidden = p->hidden, input = p->input;
    const real *state = p->inputs + word * (input + hidden) + input;
    const float *keys = p->key_powers + picture * regions * size, *query = p->query_powers + word * size;
    float open = p->gate_bias[0];
    weigh_regions(p->score, keys, query, size, regions, weights);
    for (int64_t r = 0; r < regions; r++) {
        real rounded = narrow(weights[r]);
        p->weights[word * regions + r] = rounded;
        if (spread) spread[r] = rounded;
        weights[r] = widen(rounded);
    }
#pragma omp simd reduction(+ : open)
    for (int64_t h = 0; h < hidden; h++) open += widen(state[h]) * p->gate[h];
    p->opening[word] = sigmoid(open);
}

/* Attention of `count` words of one picture: z in their inputs, or added to their gates. */
static void attend(const struct problem *p, const struct said *said, int64_t count, int64_t picture) {
    int64_t regions = p->regions, value = p->value, input = p->input;
    float weights[count * regions], contexts[count * value];
    for (int64_t k = 0; k < count; k++)
        weigh(p, said[k].word, picture, p->spread ? p->spread + said[k].slot * regions : 0, weights + k * regions);
    average(count, p->values + picture * regions * value, value, weights, regions, contexts);
    for (int64_t k = 0; k < count; k++) {
        int64_t word = said[k].word;
        float open = p->opening[word], *context = contexts + k * value;
        if (input) {
            real *entry = p->inputs + word * (input + p->hidden);
            for (int64_t d = 0; d < value; d++) entry[d] = narrow(open * context[d]);
        } else {
            float *gates = p->gates + word * value;
            const real *words = p->word_gates + word * value;
            for (int64_t d = 0; d < value; d++) gates[d] = widen(words[d]) + open * context[d];
        }
    }
}

/* The LSTM's units j to j + PANEL of the step whose words start at `at`. */
static void advance(const struct problem *p, int64_t step, int64_t at, int64_t j) {
    int64_t hidden = p->hidden, wide = p->input + hidden, rows = p->active[step];
    int64_t going_on = step + 1 < p->steps ? p->active[step + 1] : 0;
    for (int64_t first = 0; first < rows; first += TILE) {
        int64_t count = smaller(TILE, rows - first);
        float product[4][TILE][PANEL];
        for (int g = 0; g < 4; g++)
            multiply(count, p->gate_panels + (g * hidden + j) * wide, wide, p->inputs + (at + first) * wide, wide,
                     product[g]);
        for (int64_t t = 0; t < count; t++) {
            int64_t row = first + t, word = at + row;
            const float *before = cell_before(p, step, word, row) + j;
            float *gates = p->gates + word * 4 * hidden + j, *cell = p->cells + word * hidden + j;
            const real *words = p->word_gates + word * 4 * hidden + j;
            real state[PANEL];
            for (int g = 0; g < 4; g++)
                for (int64_t k = 0; k < PANEL; k++)
                    product[g][t][k] += p->input ? widen(words[g * hidden + k]) : gates[g * hidden + k];
#pragma omp simd
            for (int64_t k = 0; k < PANEL; k++) {
                float enter = sigmoid(product[0][t][k]), forget = sigmoid(product[1][t][k]);
                float candidate = hyperbolic_tangent(product[2][t][k]), leave = sigmoid(product[3][t][k]);
                float after = forget * before[k] + enter * candidate;
                gates[k] = enter;
                gates[hidden + k] = forget;
                gates[2 * hidden + k] = candidate;
                gates[3 * hidden + k] = leave;
                cell[k] = after;
                state[k] = narrow(leave * hyperbolic_tangent(after));
            }
            memcpy(p->hiddens + word * hidden + j, state, sizeof state);
            if (row < going_on) memcpy(p->inputs + (word + rows) * wide + p->input + j, state, sizeof state);
        }
    }
}

void forward(const struct problem *p) {
    int64_t size = p->attention, hidden = p->hidden, wide = p->input + hidden;
#pragma omp parallel num_threads(p->threads)
    {
        lay_out_weights(p);
#pragma omp for nowait
        for (int64_t n = 0; n < p->pictures * p->regions; n++)
            for (int64_t a = 0; a < size; a++) p->key_powers[n * size + a] = power(widen(p->keys[n * size + a]));
#pragma omp for
        for (int64_t row = 0; row < p->rows; row++)
            memcpy(p->inputs + row * wide + p->input, p->first_hidden + p->rank[row] * hidden, hidden * sizeof(real));
        for (int64_t step = 0, at = 0; step < p->steps; at += p->active[step++]) {
            int64_t rows = p->active[step];
#pragma omp for
            for (int64_t a = 0; a < size; a += PANEL)
                for (int64_t row = 0; row < rows; row += TILE) {
                    int64_t count = smaller(TILE, rows - row);
                    float product[TILE][PANEL];
                    const real *states = p->inputs + (at + row) * wide + p->input;
                    multiply(count, p->query_panels + a * hidden, hidden, states, wide, product);
                    for (int64_t t = 0; t < count; t++)
                        for (int64_t k = 0; k < PANEL; k++)
                            p->query_powers[(at + row + t) * size + a + k] = power(product[t][k]);
                }
#pragma omp for schedule(dynamic)
            for (int64_t picture = 0; picture < p->active_pictures[step]; picture++) {
                struct said said[TOGETHER_SAID];
                for (int64_t place = 0, count; (count = words_of(p, step, at, picture, place, said)); place += count)
                    attend(p, said, count, picture);
            }
#pragma omp for
            for (int64_t j = 0; j < hidden; j += PANEL) advance(p, step, at, j);
        }
        give_back_tiles();
    }
}
