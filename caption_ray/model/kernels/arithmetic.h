/* Numbers, nonlinearities and products for the files beside it.

   `real` is float, or with -DBFLOAT16 bfloat16; all that is computed is float. Vectors are GCC's and clang's own, which
   they map to whatever the machine has. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#if defined(BFLOAT16) && defined(TILES) && defined(__AVX512F__) && defined(__AMX_BF16__)
#define AMX /* products by tiles of up to 16 rows of 64 bytes; TILES says that this process may */
#endif

#ifdef AMX
#define LANES 16
#define TILE 16 /* rows of a product at a time */
#elif defined(__AVX512F__)
#define LANES 16
#define TILE 8 /* 8 x 2 sums stay in 32 registers */
#else
#define LANES 8
#define TILE 4
#endif
#define PANEL (2 * LANES) /* outputs of a product at a time */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));

INLINE vec load_exact(const float *from) {
    vec values;
    memcpy(&values, from, sizeof values);
    return values;
}

#ifdef BFLOAT16
typedef uint16_t real;

INLINE float widen(real value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

INLINE real narrow(float value) { /* to nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value == value ? (real)rounded : (real)0x7fc0;
}

INLINE vec load(const real *from) {
    typedef uint16_t half_bits __attribute__((vector_size(2 * LANES)));
    typedef uint32_t wide_bits __attribute__((vector_size(4 * LANES)));
    half_bits bits;
    memcpy(&bits, from, sizeof bits);
    return (vec)(__builtin_convertvector(bits, wide_bits) << 16);
}
#else
typedef float real;

INLINE float widen(real value) { return value; }
INLINE real narrow(float value) { return value; }

INLINE vec load(const real *from) { return load_exact(from); }
#endif

INLINE void add_to(float *to, vec values) {
    values += load_exact(to);
    memcpy(to, &values, sizeof values);
}

INLINE float sum_lanes(vec values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

/* exp, within 2e-7 of it relatively (Cephes' expf): 2^n e^f with |f| <= ln 2 / 2. Comparisons let NaN through. */
INLINE float exponential(float x) {
    x = x > 87 ? 87 : x;
    x = x < -87 ? -87 : x;
    float n = rintf(x * 1.44269504088896341f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    p = p * f * f + f + 1;
    int32_t bits = ((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

INLINE float log_of_total(const real *x, int64_t count, float *highest_of) { /* log sum e^(x - the highest x) */
    float highest = -INFINITY, total = 0;
#pragma omp simd reduction(max : highest)
    for (int64_t k = 0; k < count; k++) highest = widen(x[k]) > highest ? widen(x[k]) : highest;
#pragma omp simd reduction(+ : total)
    for (int64_t k = 0; k < count; k++) total += exponential(widen(x[k]) - highest);
    *highest_of = highest;
    return logf(total);
}

INLINE float log_of_sum(const real *x, int64_t count) { /* log sum e^x, rounded as the highest x is */
    float highest, log_total = log_of_total(x, count, &highest);
    return highest + log_total;
}

INLINE float sigmoid(float x) { return 1 / (1 + exponential(-x)); }
INLINE float hyperbolic_tangent(float x) { return 1 - 2 / (1 + exponential(2 * x)); } /* within 3e-7 */

INLINE vec reciprocal(vec x) { /* within 1e-7 of 1 / x relatively, for normal x whose reciprocal is one too */
#ifdef __AVX512F__
    vec guess = (vec)_mm512_rcp14_ps((__m512)x); /* a quarter of the time of a division */
    return guess * (2 - x * guess);
#else
    return 1 / x;
#endif
}

/* tanh of a sum of keys and queries, see problem.h. */
#define LIMIT 1e30f    /* beyond it 1 / (1 + x) is 0 as tanh goes, and 1 + x would overflow */
#define EXACT_UP_TO 43 /* of keys and queries */

INLINE float power(float x) { /* e^2x */
    x = x > EXACT_UP_TO ? EXACT_UP_TO : x;
    return exponential(2 * (x < -EXACT_UP_TO ? -EXACT_UP_TO : x));
}

INLINE vec fraction(vec key_powers, vec query_powers) { /* (1 - tanh(k + q)) / 2 */
    vec sum = 1 + key_powers * query_powers;
    for (int lane = 0; lane < LANES; lane++) sum[lane] = sum[lane] > LIMIT ? LIMIT : sum[lane];
    return reciprocal(sum);
}

/* weights[r] = softmax_r(v . tanh(k_r + q)), from e^2k of the regions' keys and e^2q. */
INLINE void weigh_regions(const float *score, const float *key_powers, const float *query_powers, int64_t size,
                          int64_t regions, float *weights) {
    float highest = -INFINITY, total = 0;
    for (int64_t r = 0; r < regions; r++) {
        const float *key = key_powers + r * size;
        vec sum = {0};
        for (int64_t a = 0; a < size; a += LANES)
            sum += load_exact(score + a) * fraction(load_exact(key + a), load_exact(query_powers + a));
        weights[r] = -2 * sum_lanes(sum);
        highest = weights[r] > highest ? weights[r] : highest;
    }
    for (int64_t r = 0; r < regions; r++) weights[r] = exponential(weights[r] - highest);
    for (int64_t r = 0; r < regions; r++) total += weights[r];
    for (int64_t r = 0; r < regions; r++) weights[r] /= total;
}

/* sums[k][d] = sum_r weights[k][r] * values[r][d] for `count` words k, four regions at a time: sums are read and
   written less often, and values once for all words. */
INLINE void average(int64_t count, const real *values, int64_t size, const float *weights, int64_t regions,
                    float *sums) {
    int64_t r = 0;
    memset(sums, 0, count * size * sizeof *sums);
    for (; r + 4 <= regions; r += 4)
        for (int64_t d = 0; d < size; d += LANES) {
            const real *at = values + r * size + d;
            vec first = load(at), second = load(at + size), third = load(at + 2 * size), fourth = load(at + 3 * size);
            for (int64_t k = 0; k < count; k++) {
                const float *w = weights + k * regions + r;
                add_to(sums + k * size + d, w[0] * first + w[1] * second + w[2] * third + w[3] * fourth);
            }
        }
    for (; r < regions; r++)
        for (int64_t k = 0; k < count; k++)
            for (int64_t d = 0; d < size; d += LANES)
                add_to(sums + k * size + d, weights[k * regions + r] * load(values + r * size + d));
}

/* Weights of a product, laid out as it reads them: PANEL outputs by PANEL outputs, and in each of these input by input.
   bfloat16 products of AVX-512 and AMX take inputs by twos. Elsewhere they are floats. */
#if defined(AMX) || (defined(BFLOAT16) && defined(__AVX512BF16__))
typedef uint16_t panel;
#define TOGETHER 2
INLINE panel to_panel(real weight) { return weight; }
#else
typedef float panel;
#define TOGETHER 1
INLINE panel to_panel(real weight) { return widen(weight); }
#endif

/* Lay out weight[o * by_output + i * by_input] of PANEL outputs o and `inputs` inputs i. */
INLINE void lay_out(panel *to, const real *weight, int64_t by_output, int64_t by_input, int64_t inputs) {
    for (int64_t i = 0; i < inputs; i += TOGETHER)
        for (int64_t o = 0; o < PANEL; o++)
            for (int64_t k = 0; k < TOGETHER; k++)
                to[i * PANEL + o * TOGETHER + k] = to_panel(weight[o * by_output + (i + k) * by_input]);
}

#ifdef AMX
static _Thread_local int64_t tile_rows; /* as this thread's tiles are set up; 0: they are not */

/* Have tiles 0 to 2 of so many rows, 3 and 4 of 16, of 64 bytes each. */
static void set_up_tiles(int64_t rows) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } setup = {.palette = 1};
    for (int tile = 0; tile < 5; tile++) {
        setup.row_bytes[tile] = 64;
        setup.rows[tile] = tile < 3 ? rows : 16;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(setup));
    tile_rows = rows;
}

/* Leave the tiles as other code expects them. */
INLINE void give_back_tiles(void) {
    _tile_release();
    tile_rows = 0;
}

/* out (rows, PANEL) = in (rows, inputs) by a panel, for up to TILE rows. */
static void multiply(int64_t rows, const panel *weights, int64_t inputs, const real *in, int64_t stride,
                     float out[][PANEL]) {
    if (tile_rows != rows) set_up_tiles(rows);
    __asm__ volatile("" : : : "memory"); /* GCC does not know that the loads below read memory */
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t i = 0; i < inputs; i += 32) {
        _tile_loadd(2, in + i, stride * sizeof(real));
        _tile_loadd(3, weights + i * PANEL, 4 * PANEL);
        _tile_loadd(4, weights + i * PANEL + PANEL, 4 * PANEL);
        _tile_dpbf16ps(0, 2, 3);
        _tile_dpbf16ps(1, 2, 4);
    }
    _tile_stored(0, out[0], 4 * PANEL);
    _tile_stored(1, out[0] + LANES, 4 * PANEL);
}
#else
INLINE void give_back_tiles(void) {}

/* out (rows, PANEL) = in (rows, inputs) by a panel; `rows` is a constant, so that the sums are registers. */
INLINE void multiply_rows(const int rows, const panel *weights, int64_t inputs, const real *in, int64_t stride,
                          float out[][PANEL]) {
    vec sum[TILE][2];
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) sum[row][0] = sum[row][1] = (vec){0};
    for (int64_t i = 0; i < inputs; i += TOGETHER) {
#if TOGETHER == 2
        __m512bh left = (__m512bh)_mm512_loadu_si512(weights + i * PANEL);
        __m512bh right = (__m512bh)_mm512_loadu_si512(weights + i * PANEL + PANEL);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            int32_t pair;
            memcpy(&pair, in + row * stride + i, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            sum[row][0] = _mm512_dpbf16_ps(sum[row][0], both, left);
            sum[row][1] = _mm512_dpbf16_ps(sum[row][1], both, right);
        }
#else
        vec left, right;
        memcpy(&left, weights + i * PANEL, sizeof left);
        memcpy(&right, weights + i * PANEL + LANES, sizeof right);
#pragma GCC unroll 8
        for (int row = 0; row < rows; row++) {
            float value = widen(in[row * stride + i]);
            sum[row][0] += value * left;
            sum[row][1] += value * right;
        }
#endif
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) memcpy(out[row], sum[row], sizeof sum[row]);
}

/* The same for any number of rows up to TILE. */
static void multiply(int64_t rows, const panel *weights, int64_t inputs, const real *in, int64_t stride,
                     float out[][PANEL]) {
    switch (rows) {
#if TILE == 8
    case 8: multiply_rows(8, weights, inputs, in, stride, out); break;
    case 7: multiply_rows(7, weights, inputs, in, stride, out); break;
    case 6: multiply_rows(6, weights, inputs, in, stride, out); break;
    case 5: multiply_rows(5, weights, inputs, in, stride, out); break;
#endif
    case 4: multiply_rows(4, weights, inputs, in, stride, out); break;
    case 3: multiply_rows(3, weights, inputs, in, stride, out); break;
    case 2: multiply_rows(2, weights, inputs, in, stride, out); break;
    default: multiply_rows(1, weights, inputs, in, stride, out);
    }
}
#endif
