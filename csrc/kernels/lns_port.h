/* Everything that differs between compilers and builds; no other file has an #ifdef. */
#ifndef LNS_PORT_H
#define LNS_PORT_H
#include <stdint.h>

/* Sizes that the rows of a tile bound, like LNS_MAX_ROWS * LNS_PITCH * 2 * 8 bytes, are far from overflow. */
_Static_assert(SIZE_MAX >= UINT64_MAX, "lineas needs sizes of 64 bits");

#ifdef _OPENMP
#include <omp.h>
static inline int lns_thread(void) { return omp_get_thread_num(); }
enum { LNS_HAS_OPENMP = 1 };
#else
static inline int lns_thread(void) { return 0; }
enum { LNS_HAS_OPENMP = 0 };
#endif

/* LNS_CLONES: the compiler emits AVX2 and AVX-512 copies of a plain loop, chosen when the library is loaded.
 * For static functions only: the linker exports the others, hidden or not. The choice runs before a sanitizer is ready,
 * so sanitizer builds do without, as do platforms that lack it. */
#if defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) \
    && !defined(__SANITIZE_ADDRESS__)
#define LNS_CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define LNS_CLONES
#endif

/* What must be inlined for the compiler to see constants; what must not be, because its caller has clones; and a loop
 * of constant length that must become straight code, for its array to live in registers. */
#if defined(__GNUC__)
#define LNS_INLINE static inline __attribute__((always_inline))
#define LNS_NOINLINE static __attribute__((noinline))
#define LNS_UNROLL _Pragma("GCC unroll 16")
#elif defined(_MSC_VER)
#define LNS_INLINE static __forceinline
#define LNS_NOINLINE static __declspec(noinline)
#define LNS_UNROLL
#else
#define LNS_INLINE static inline
#define LNS_NOINLINE static
#define LNS_UNROLL
#endif

/* Position of the lowest bit that is set; one must be. */
static inline int lns_lowest_bit(uint64_t x)
{
#ifdef __GNUC__
    return __builtin_ctzll(x);
#else                                                         /* the bits below it, counted side by side */
    x = (x & (0 - x)) - 1;
    x -= (x >> 1) & 0x5555555555555555;
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333);
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F;
    return (int)((x * 0x0101010101010101) >> 56);
#endif
}

/* A parallel loop over independent iterations; serial, and threads unused, where there is no OpenMP. Its index is signed
 * and declared before the loop: MSVC has OpenMP 2.0, which in C takes no declaration there. */
#ifdef _OPENMP
#define LNS_PRAGMA(text) _Pragma(#text)
#define LNS_PARALLEL_FOR(threads) LNS_PRAGMA(omp parallel for schedule(static) num_threads(threads) if ((threads) > 1))
#else
#define LNS_PARALLEL_FOR(threads) (void)(threads);
#endif

/* A sum may be split over SIMD lanes; without leave a compiler keeps a float sum in its order, one term at a time.
 * OpenMP 2.0 has no such leave to give. */
#if defined(_OPENMP) && !defined(_MSC_VER)
#define LNS_SIMD_SUM(...) LNS_PRAGMA(omp simd reduction(+ : __VA_ARGS__))
#else
#define LNS_SIMD_SUM(...)
#endif

#endif
