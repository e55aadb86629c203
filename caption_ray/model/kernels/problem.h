/* The decoder's loop over words, forward and backward, in one call each: what caption_ray/model/recurrence.py does with
   torch's operations, which says why it is done so. Of a word with the state (h, c) before it, and its picture's
   regions r of keys k and values f:

     q = U h                      s_r = v . tanh(k_r + q)         a = softmax(s)
     b = sigmoid(w . h + bias)    z = b sum_r a_r f_r             (i, f, g, o) = word's gates + W (z, h)
     c' = sigmoid(f) c + sigmoid(i) tanh(g)                       h' = sigmoid(o) tanh(c')

   Where values were multiplied by W's part for z beforehand, z is added to the gates instead (input == 0).

   tanh(k + q) = 1 - 2 / (1 + e^2k e^2q) takes no exponential for a region and a word, only one for each key and each
   query. Both are cut at +-43, whose exponentials single precision can hold. The 1 is left out of scores: softmax takes
   no notice of a constant. The way back makes the fractions anew, which costs less than to keep them.

   Products are shared out among threads by outputs, attention by pictures; every `omp for` ends with a barrier. Sizes
   of keys, values and states are multiples of PANEL. Arrays are packed row by row; their shapes are in the letters of
   recurrence.py. */

#include "arithmetic.h"

struct problem { /* as in fused.py */
    int64_t threads, steps, rows, pictures, per_picture, regions, attention, hidden, value, input, context_stride;
    const int64_t *active, *active_pictures; /* rows and pictures that go on at each step */
    const int64_t *captions;                 /* (P, K): rows of each picture, rising, then `rows` */
    const int64_t *rank;                     /* (N): picture of each row */
    const real *word_gates, *keys, *values, *first_hidden; /* (W, 4H) (P, R, A) (P, R, D) (P, H) */
    const float *first_cell;                               /* (P, H) */
    const real *query, *context, *state;                   /* (A, H) (4H, D), nothing if input == 0, (4H, H) */
    const float *score, *gate, *gate_bias;                 /* (A) (H) (1) */
    panel *query_panels, *gate_panels;
    /* What the way back needs: e^2k (P, R, A), e^2q (W, A), (W, 4H) after their nonlinearities, (W, H), b (W), (W, R),
       (z, h) (W, D + H), h' (W, H), a by picture (P, T, K, R) or nothing. */
    float *key_powers, *query_powers, *gates, *cells, *opening;
    real *weights, *inputs, *hiddens, *spread;
    const real *d_hiddens, *d_attended, *d_weights; /* given, or nothing */
    real *d_gates, *d_query, *d_contexts;           /* (W, 4H) (W, A) (P, T, K, D) or nothing */
    float *d_opening, *d_inputs;                    /* (W), scratch (N, D + H) */
    float *d_keys, *d_score, *d_state, *d_cell;     /* sums that start from zeros: (P, R, A) (P, A) (N, H) (N, H) */
};

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The cell (H) before a word in `row` of a step. */
INLINE const float *cell_before(const struct problem *p, int64_t step, int64_t word, int64_t row) {
    if (step == 0) return p->first_cell + p->rank[row] * p->hidden;
    return p->cells + (word - p->active[step - 1]) * p->hidden;
}

#define TOGETHER_SAID 5 /* words of a picture that are attended to at a time; captions come by fives */

struct said { /* a word of a picture at a step: where it is packed, its row, and its place in (P, T, K) */
    int64_t word, row, slot;
};

/* Put the words of a picture from a place of its captions on, TOGETHER_SAID at most, into `said`; return how many. */
INLINE int64_t words_of(const struct problem *p, int64_t step, int64_t at, int64_t picture, int64_t place,
                        struct said *said) {
    int64_t count = 0;
    for (; count < TOGETHER_SAID && place < p->per_picture; count++, place++) {
        int64_t row = p->captions[picture * p->per_picture + place];
        if (row >= p->active[step]) break;
        said[count] = (struct said){at + row, row, (picture * p->steps + step) * p->per_picture + place};
    }
    return count;
}
