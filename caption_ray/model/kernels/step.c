/* Parts of a step of decoding, as forward.c does them, which keeps what the way back needs: attention weights
   a = softmax_r(v . tanh(k_r + q)) of queries with averages of values by them, and the LSTM's nonlinearities. What
   takes numbers of rows returns 0, or, having done nothing, which of these numbers, the first or the second, are of no
   row. */

#include "arithmetic.h"

struct attention { /* as in fused_step.py */
    int64_t threads, rows, pictures, regions, attention, value;
    const float *powers;       /* (P, R, A): e^2k */
    const real *values;        /* (P, R, D) */
    const real *queries;       /* (N, A) */
    const int64_t *picture_of; /* (N) */
    const float *score;        /* (A) */
    float *weights, *averages; /* (N, R) (N, D) */
};

static int are_within(const int64_t *numbers, int64_t count, int64_t end) {
    for (int64_t n = 0; n < count; n++)
        if (numbers[n] < 0 || numbers[n] >= end) return 0;
    return 1;
}

/* Attention of one row. */
static void look(const struct attention *p, int64_t row) {
    int64_t regions = p->regions, size = p->attention, value = p->value, picture = p->picture_of[row];
    const float *powers = p->powers + picture * regions * size;
    const real *values = p->values + picture * regions * value;
    float *weights = p->weights + row * regions, query[size];
    for (int64_t a = 0; a < size; a++) query[a] = power(widen(p->queries[row * size + a]));
    weigh_regions(p->score, powers, query, size, regions, weights);
    average(1, values, value, weights, regions, p->averages + row * value);
}

int attention(const struct attention *p) {
    if (!are_within(p->picture_of, p->rows, p->pictures)) return 1;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t row = 0; row < p->rows; row++) look(p, row);
    return 0;
}

void powers(int64_t threads, int64_t count, const real *keys, float *to) {
#pragma omp parallel for num_threads(threads)
    for (int64_t n = 0; n < count; n++) to[n] = power(widen(keys[n]));
}

struct cell { /* as in fused_step.py */
    int64_t threads, rows, hidden, states, words;
    const float *state_gates, *word_gates;  /* (U, 4H) (V, 4H): their sum is that of a row's gates */
    const int64_t *state_of, *word_of;      /* (N) (N): which of them, or nothing where it is the row's own */
    const float *before;                    /* (N, H) */
    float *after, *state;                   /* (N, H) (N, H) */
};

int cell(const struct cell *p) {
    int64_t hidden = p->hidden;
    if (p->state_of ? !are_within(p->state_of, p->rows, p->states) : p->rows > p->states) return 1;
    if (p->word_of ? !are_within(p->word_of, p->rows, p->words) : p->rows > p->words) return 2;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t row = 0; row < p->rows; row++) {
        const float *by_state = p->state_gates + (p->state_of ? p->state_of[row] : row) * 4 * hidden;
        const float *by_word = p->word_gates + (p->word_of ? p->word_of[row] : row) * 4 * hidden;
        const float *before = p->before + row * hidden;
        float *after = p->after + row * hidden, *state = p->state + row * hidden;
#pragma omp simd
        for (int64_t j = 0; j < hidden; j++) {
            float enter = sigmoid(by_state[j] + by_word[j]);
            float forget = sigmoid(by_state[hidden + j] + by_word[hidden + j]);
            float candidate = hyperbolic_tangent(by_state[2 * hidden + j] + by_word[2 * hidden + j]);
            float leave = sigmoid(by_state[3 * hidden + j] + by_word[3 * hidden + j]);
            after[j] = forget * before[j] + enter * candidate;
            state[j] = leave * hyperbolic_tangent(after[j]);
        }
    }
    return 0;
}
