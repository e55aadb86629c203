/* The cross-entropy of words and its gradient, each in one pass over their logits x, where torch takes seven. With
   y = log sum_v e^x_v and smoothing s (Szegedy et al. 2016, sec. 7), of a word with the target t:

     loss = y - (1 - s) x_t - s mean(x)        dx_v = (e^(x_v - y) - (1 - s) [v = t] - s / V) dloss

   y is kept as its two parts, the highest x and the rest: their sum would be rounded as the former is. */

#include "arithmetic.h"

struct cross_entropy { /* as in fused_loss.py */
    int64_t threads, words, vocabulary;
    double smoothing;
    const real *logits;        /* (W, V) */
    const int64_t *targets;    /* (W) */
    float *losses, *highest, *log_totals; /* (W) each */
    const float *d_losses;     /* (W), given */
    real *d_logits;            /* (W, V) */
};

void cross_entropy(const struct cross_entropy *p) {
    int64_t vocabulary = p->vocabulary;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t word = 0; word < p->words; word++) {
        const real *logits = p->logits + word * vocabulary;
        float highest, log_total = log_of_total(logits, vocabulary, &highest), smoothing = p->smoothing, sum = 0;
        p->highest[word] = highest;
        p->log_totals[word] = log_total;
        p->losses[word] = log_total + (1 - smoothing) * (highest - widen(logits[p->targets[word]]));
        if (smoothing == 0) continue;
#pragma omp simd reduction(+ : sum)
        for (int64_t v = 0; v < vocabulary; v++) sum += highest - widen(logits[v]);
        p->losses[word] += smoothing * sum / vocabulary;
    }
}

void cross_entropy_backward(const struct cross_entropy *p) {
    int64_t vocabulary = p->vocabulary;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t word = 0; word < p->words; word++) {
        const real *logits = p->logits + word * vocabulary;
        real *d_logits = p->d_logits + word * vocabulary;
        float highest = p->highest[word], log_total = p->log_totals[word];
        float d_loss = p->d_losses[word], smoothing = p->smoothing;
        float spread = smoothing / vocabulary;
        int64_t target = p->targets[word];
#pragma omp simd
        for (int64_t v = 0; v < vocabulary; v++)
            d_logits[v] = narrow(d_loss * (exponential(widen(logits[v]) - highest - log_total) - spread));
        float share = exponential(widen(logits[target]) - highest - log_total);
        d_logits[target] = narrow(d_loss * (share - (1 - smoothing) - spread));
    }
}
