/* The register peak of one core: independent chains of fused multiply-adds on registers alone.
   Prints GFLOP/s in fp32, and in bf16 (0 where the processor's vectors have no bf16), by the thread's CPU time. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12 /* at least latency times units, and few enough for 16 registers */

typedef float vector __attribute__((vector_size(BYTES)));

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

int main(int count, char **arguments) {
    long steps = count > 1 ? atol(arguments[1]) : 20000000;
    volatile float one = 0.999999f, little = 1e-7f; /* unknown to the compiler */
    vector factor, summand, chain[CHAINS];
    for (unsigned i = 0; i < BYTES / 4; i++) factor[i] = one, summand[i] = little;
    for (int j = 0; j < CHAINS; j++) chain[j] = factor;
    double begin = seconds();
    for (long step = 0; step < steps; step++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) chain[j] = chain[j] * factor + summand;
    }
    double fp32 = 2.0 * CHAINS * (BYTES / 4) * steps / (seconds() - begin) / 1e9, bf16 = 0;
    float sum = 0;
    for (int j = 0; j < CHAINS; j++) sum += chain[j][0];
#ifdef __AVX512BF16__
    __m512 total[CHAINS];
    __m512bh pair = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int j = 0; j < CHAINS; j++) total[j] = _mm512_set1_ps(one);
    begin = seconds();
    for (long step = 0; step < steps; step++) {
#pragma GCC unroll 12
        for (int j = 0; j < CHAINS; j++) total[j] = _mm512_dpbf16_ps(total[j], pair, pair);
    }
    bf16 = 4.0 * CHAINS * 16 * steps / (seconds() - begin) / 1e9;
    for (int j = 0; j < CHAINS; j++) sum += total[j][0];
#endif
    printf("%.2f %.2f %g\n", fp32, bf16, sum);
    return 0;
}
