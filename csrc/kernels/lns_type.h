/* One text for several types. What lns_x.inc says is compiled once for each TYPE for which lns_x.c includes it:
 *
 *     #define TYPE f32
 *     #include "lns_x.inc"
 *     #define TYPE f64
 *     #include "lns_x.inc"
 *
 * The text ends with #undef TYPE. In it, NAME(f) is f of this type, f_f32 or f_f64; what else differs between types,
 * a constant or a small function, has a NAME as well, and stands above these lines. */
#ifndef LNS_TYPE_H
#define LNS_TYPE_H

#define LNS_JOIN(f, type) f##_##type
#define LNS_NAME(f, type) LNS_JOIN(f, type)                   /* TYPE becomes its value before it is joined */
#define NAME(f) LNS_NAME(f, TYPE)

/* What numbers are computed in. */
#define REAL NAME(real)
typedef float real_f32;
typedef double real_f64;

#endif
