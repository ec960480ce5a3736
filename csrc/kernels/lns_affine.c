#include "lns_affine.h"

#include <string.h>

#include "lns_block.h"
#include "lns_port.h"
#include "lns_type.h"

/* Channels (or tokens) worked on at a time: their maps and sums stay in the cache, and most rows are read from end to
 * end, as prefetching likes it. */
enum { BLOCK = 4096 };

/* ---- choices by bits ----
 * A compiler may not do by itself the arithmetic of a branch that is not taken: choosing among bits leaves no branch, so
 * that every SIMD unit serves. */

static inline float from_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t to_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* b where condition is 0, a where it is 1. */
static inline uint32_t choose(int condition, uint32_t a, uint32_t b) { return b ^ ((a ^ b) & (0u - (uint32_t)condition)); }

/* x where condition is 1, 0 where it is 0. */
static inline float keep_f32(int condition, float x) { return from_bits(to_bits(x) & (0u - (uint32_t)condition)); }

static inline double keep_f64(int condition, double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= (uint64_t)0 - (uint64_t)condition;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float keep_bf16(int condition, float x) { return keep_f32(condition, x); }
static inline float keep_f16(int condition, float x) { return keep_f32(condition, x); }

/* ---- what activations are kept in, from which load makes what is computed in, and save that again ---- */

#define STORE NAME(store)
typedef float store_f32;
typedef double store_f64;
typedef uint16_t store_bf16, store_f16;
typedef float real_bf16, real_f16;

static inline float load_f32(float x) { return x; }
static inline float save_f32(float x) { return x; }
static inline double load_f64(double x) { return x; }
static inline double save_f64(double x) { return x; }

/* Halves: exact to float, and back with one rounding, to the nearest even. */
static inline float load_bf16(uint16_t half) { return from_bits((uint32_t)half << 16); }

static inline uint16_t save_bf16(float x)
{
    uint32_t bits = to_bits(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (uint16_t)choose((bits & 0x7fffffff) > 0x7f800000, 0x7fc0, rounded);
}

/* float16 has 5 bits of exponent where float has 8: 15 and 127 stand for 1. */
static inline float load_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = (uint32_t)half & 0x7fff;
    uint32_t small = to_bits((float)(int32_t)rest * 0x1p-24f);                 /* subnormal: units of 2^-24 */
    uint32_t normal = (rest << 13) + ((127 - 15) << 23), special = normal + ((127 - 15) << 23);
    return from_bits(sign | choose(rest < 0x0400, small, choose(rest < 0x7c00, normal, special)));
}

static inline uint16_t save_f16(float x)
{
    uint32_t bits = to_bits(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    uint32_t normal = (rest - ((127 - 15) << 23) + 0xfff + (rest >> 13 & 1)) >> 13;
    uint32_t small = to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f);          /* the sum is rounded to 2^-24 */
    uint32_t large = choose(rest > 0x7f800000, 0x7e00, 0x7c00);
    return (uint16_t)(sign | choose(rest < 0x38800000, small, choose(rest < 0x477ff000, normal, large)));
}

#define TYPE f32
#include "lns_affine.inc"
#define TYPE f64
#include "lns_affine.inc"
#define TYPE bf16
#include "lns_affine.inc"
#define TYPE f16
#include "lns_affine.inc"
