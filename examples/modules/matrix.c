// Multiplies matrices of 32-bit floats, four columns at a time with SIMD.
#include "guest.h"

enum { LANES = 4 };

// Matrices need not start or continue at multiples of 16 bytes.
typedef float Four __attribute__((vector_size(LANES * sizeof(float)), aligned(4)));

// Computes c = a b, where `a` has m rows of k numbers, `b` k rows of n, `c` m rows of n.
void EXPORT(multiply)(const float *a, const float *b, float *c, size_t m, size_t k, size_t n) {
    for (size_t row = 0; row < m; row++) {
        size_t column = 0;
        for (; column + LANES <= n; column += LANES) {
            Four sum = {0};
            for (size_t i = 0; i < k; i++)
                sum += a[row * k + i] * *(const Four *)(b + i * n + column);
            *(Four *)(c + row * n + column) = sum;
        }
        for (; column < n; column++) {
            float sum = 0;
            for (size_t i = 0; i < k; i++) sum += a[row * k + i] * b[i * n + column];
            c[row * n + column] = sum;
        }
    }
}
