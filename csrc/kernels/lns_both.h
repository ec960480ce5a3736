/* Includes LNS_BODY once for each precision: REAL is the type, NAME(f) its symbol. Last in a file; not a header. */
#define REAL float
#define NAME(f) f##_f32
#include LNS_BODY
#undef REAL
#undef NAME

#define REAL double
#define NAME(f) f##_f64
#include LNS_BODY
