/* A product with weights that stay: out (N, O) = in (N, I) W^T + bias, inputs and weights as `real`, sums in float. */

#include "arithmetic.h"

#define WIDE 4 /* tiles of rows at a time: a panel is read once for all of them */

struct product { /* as in fused_product.py */
    int64_t threads, rows, inputs, outputs;
    const real *in, *weights; /* (N, I) (O, I) */
    const float *bias;        /* (O), or nothing */
    panel *panels;            /* room for O, rounded up to PANEL, by I */
    float *out;               /* (N, O) */
};

/* Lay out the weights; outputs that there are not have zeros. I is a multiple of PANEL. */
void lay_out_product(const struct product *p) {
    int64_t inputs = p->inputs;
#pragma omp parallel for num_threads(p->threads)
    for (int64_t o = 0; o < p->outputs; o += PANEL) {
        real rows[PANEL * inputs];
        int64_t left = p->outputs - o, count = left < PANEL ? left : PANEL;
        memset(rows, 0, sizeof rows);
        memcpy(rows, p->weights + o * inputs, count * inputs * sizeof(real));
        lay_out(p->panels + o * inputs, rows, inputs, 1, inputs);
    }
}

/* The outputs o to o + PANEL, as far as there are any, of up to TILE rows. */
INLINE void part(const struct product *p, int64_t o, int64_t row, int64_t count) {
    float sums[TILE][PANEL];
    int64_t left = p->outputs - o, width = left < PANEL ? left : PANEL;
    multiply(count, p->panels + o * p->inputs, p->inputs, p->in + row * p->inputs, p->inputs, sums);
    for (int64_t t = 0; t < count; t++) {
        if (p->bias)
            for (int64_t k = 0; k < width; k++) sums[t][k] += p->bias[o + k];
        memcpy(p->out + (row + t) * p->outputs + o, sums[t], width * sizeof(float));
    }
}

void product(const struct product *p) {
    int64_t block = WIDE * TILE;
#pragma omp parallel num_threads(p->threads)
    {
#pragma omp for collapse(2)
        for (int64_t first = 0; first < p->rows; first += block)
            for (int64_t o = 0; o < p->outputs; o += PANEL)
                for (int64_t row = first; row < p->rows && row < first + block; row += TILE)
                    part(p, o, row, p->rows - row < TILE ? p->rows - row : TILE);
        give_back_tiles();
    }
}

/* Without AMX, oneDNN's products in single precision are as fast for a few rows, and faster for many. */
int pays(void) {
#ifdef AMX
    return 1;
#else
    return 0;
#endif
}
