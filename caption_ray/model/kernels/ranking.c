/* The best continuations of a picture's beams: of the sums of a row's score and its words' log-probabilities
   x - log sum e^x, the highest of all rows of a picture. Of equal ones the first, by row and then by word. */

#include "arithmetic.h"

#define BLOCK 32

struct ranking { /* as in fused_ranking.py */
    int64_t threads, pictures, rows, words, count, num_never; /* rows of a picture; how many to find */
    const int64_t *never;                                     /* words that are not among them, but in the sums */
    const real *logits;                                       /* (P, K, V) */
    const float *scores;                                      /* (P, K) */
    float *totals;                                            /* (P, C), falling; where there are fewer, -inf */
    int64_t *origins, *found;                                 /* (P, C) rows of all, and words */
};

INLINE int is_never(const struct ranking *p, int64_t word) {
    for (int64_t n = 0; n < p->num_never; n++)
        if (p->never[n] == word) return 1;
    return 0;
}

/* Put a continuation where it belongs; the last drops out. */
INLINE void insert(float *totals, int64_t *origins, int64_t *found, int64_t at, float total, int64_t row, int64_t word) {
    for (; at > 0 && totals[at - 1] < total; at--) {
        totals[at] = totals[at - 1];
        origins[at] = origins[at - 1];
        found[at] = found[at - 1];
    }
    totals[at] = total;
    origins[at] = row;
    found[at] = word;
}

static void rank_picture(const struct ranking *p, int64_t picture) {
    int64_t count = p->count;
    float *totals = p->totals + picture * count;
    int64_t *origins = p->origins + picture * count, *found = p->found + picture * count;
    for (int64_t n = 0; n < count; n++) {
        totals[n] = -INFINITY;
        origins[n] = picture * p->rows;
        found[n] = p->num_never ? p->never[0] : 0;
    }
    for (int64_t row = picture * p->rows; row < (picture + 1) * p->rows; row++) {
        const real *x = p->logits + row * p->words;
        float shift = p->scores[row] - log_of_sum(x, p->words);
        for (int64_t first = 0; first < p->words; first += BLOCK) {
            int64_t end = first + BLOCK < p->words ? first + BLOCK : p->words;
            int any = 0;
            for (int64_t word = first; word < end; word++) any |= widen(x[word]) + shift > totals[count - 1];
            for (int64_t word = first; any && word < end; word++)
                if (widen(x[word]) + shift > totals[count - 1] && !is_never(p, word))
                    insert(totals, origins, found, count - 1, widen(x[word]) + shift, row, word);
        }
    }
}

void rank(const struct ranking *p) {
#pragma omp parallel for num_threads(p->threads)
    for (int64_t picture = 0; picture < p->pictures; picture++) rank_picture(p, picture);
}
