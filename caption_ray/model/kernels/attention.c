/* Attention weights a = softmax_r(v . tanh(k_r + q)) of some queries for each picture, for decoding: as forward.c, which
   keeps what the way back needs and goes word by word. */

#include "arithmetic.h"

struct attention { /* as in fused_attention.py */
    int64_t threads, pictures, per_picture, regions, attention;
    const real *keys, *queries; /* (P, R, A) (P, K, A) */
    const float *score;         /* (A) */
    float *weights;             /* (P, K, R) */
};

void attention(const struct attention *p) {
    int64_t regions = p->regions, size = p->attention;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t picture = 0; picture < p->pictures; picture++) {
        float keys[regions * size], query[size];
        for (int64_t n = 0; n < regions * size; n++) keys[n] = power(widen(p->keys[picture * regions * size + n]));
        for (int64_t row = picture * p->per_picture; row < (picture + 1) * p->per_picture; row++) {
            float *weights = p->weights + row * regions, highest = -INFINITY, total = 0;
            for (int64_t a = 0; a < size; a++) query[a] = power(widen(p->queries[row * size + a]));
            for (int64_t r = 0; r < regions; r++) {
                vec sum = {0};
                for (int64_t a = 0; a < size; a += LANES)
                    sum += load_exact(p->score + a) * fraction(load_exact(keys + r * size + a), load_exact(query + a));
                weights[r] = -2 * sum_lanes(sum);
                highest = weights[r] > highest ? weights[r] : highest;
            }
            for (int64_t r = 0; r < regions; r++) weights[r] = exponential(weights[r] - highest);
            for (int64_t r = 0; r < regions; r++) total += weights[r];
            for (int64_t r = 0; r < regions; r++) weights[r] /= total;
        }
    }
}
