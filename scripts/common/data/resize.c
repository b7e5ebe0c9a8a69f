/* Pillow's bilinear resize, but only of the pixels that a crop keeps: size x size from the middle.
 *
 * Same arithmetic as Pillow's for 8-bit channels, so the same bytes: weights with 22 fractional
 * bits, the horizontal pass first, its result rounded to 8 bits. pixels.py computes the weights.
 * No sum leaves 0..255: weights are not negative, and their sum differs from 1 by less than half a
 * unit of the 22nd bit for each of them.
 *
 * image      [height, width, 3] bytes, and 16 more that are read but not used
 * width      of the image, in pixels
 * size       pixels, each side of the result
 * x_first    [size] first source column of each kept column
 * x_weights  [size, x_taps]
 * x_split    x_weights for AVX2, which multiplies 16-bit numbers in pairs and adds the two products:
 *            int16 [size, groups of 4 taps, upper or lower 11 bits, taps 0 and 1 or 2 and 3,
 *            the 4 bytes of a pixel, one tap of the two]
 * y_first    [size] first source row of each kept row, ascending
 * y_weights  [size, y_taps]
 * rows       scratch, [y_first[size-1] + y_taps - y_first[0], 3, size] bytes
 * sums       scratch, [3, size] int32
 * planes     out: [3, size, size] floats in 0..1, or NULL
 * pixels     out if planes is NULL: [size, size, 3] bytes
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BITS 22
#define HALF (1 << (BITS - 1))

typedef int32_t int32x4 __attribute__((vector_size(16)));

#ifdef __AVX2__
#include <immintrin.h>

/* One pixel of a row: int32 [red, green, blue, none]. */
static inline __m128i resize_pixel(const uint8_t *in, const int16_t *split, ptrdiff_t taps)
{
    const __m256i in_pairs = _mm256_setr_epi8(
        0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,
        6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    __m256i upper = _mm256_setzero_si256(), lower = upper;
    for (ptrdiff_t t = 0; t < taps; t += 4, in += 12, split += 32) {
        const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)in));
        const __m256i pairs = _mm256_shuffle_epi8(bytes, in_pairs);
        const __m256i upper_weights = _mm256_loadu_si256((const __m256i *)split);
        const __m256i lower_weights = _mm256_loadu_si256((const __m256i *)(split + 16));
        upper = _mm256_add_epi32(upper, _mm256_madd_epi16(pairs, upper_weights));
        lower = _mm256_add_epi32(lower, _mm256_madd_epi16(pairs, lower_weights));
    }
    const __m256i sums = _mm256_add_epi32(_mm256_slli_epi32(upper, 11), lower);
    const __m128i sum =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    return _mm_srli_epi32(_mm_add_epi32(sum, _mm_set1_epi32(HALF)), BITS);
}

/* Resize a row, four pixels at a time; gives how many pixels of the row are done.
 * Inlined, because that is an eighth faster where `taps` is the constant 4. */
static inline __attribute__((always_inline)) ptrdiff_t resize_fours(
    const uint8_t *image, ptrdiff_t size, const int32_t *first, const int16_t *split,
    ptrdiff_t taps, uint8_t *row)
{
    const __m128i by_channel = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1);
    const ptrdiff_t length = (taps + 3) / 4 * 32;
    ptrdiff_t x = 0;
    for (; x + 4 <= size; x += 4, split += 4 * length) {
        const __m128i a = resize_pixel(image + first[x] * 3, split, taps);
        const __m128i b = resize_pixel(image + first[x + 1] * 3, split + length, taps);
        const __m128i c = resize_pixel(image + first[x + 2] * 3, split + 2 * length, taps);
        const __m128i d = resize_pixel(image + first[x + 3] * 3, split + 3 * length, taps);
        const __m128i bytes = _mm_packus_epi16(_mm_packus_epi32(a, b), _mm_packus_epi32(c, d));
        int32_t channels[4];
        _mm_storeu_si128((__m128i *)channels, _mm_shuffle_epi8(bytes, by_channel));
        for (int channel = 0; channel < 3; channel++)
            memcpy(row + channel * size + x, channels + channel, 4);
    }
    return x;
}
#endif

#ifdef __aarch64__
#include <arm_neon.h>

/* Indices of a table lookup: the channels of the pixel that begins at byte `at` of 16, each widened
 * to 32 bits. An index beyond the 16 bytes gives 0. */
#define CHANNEL(at) (at), 0xFF, 0xFF, 0xFF
#define PIXEL(at) {CHANNEL(at), CHANNEL((at) + 1), CHANNEL((at) + 2), 0xFF, 0xFF, 0xFF, 0xFF}

/* One pixel of a row: twelve instructions for four taps, where the portable loop below takes 32. */
static inline int32x4_t resize_pixel(const uint8_t *in, const int32_t *weights, ptrdiff_t taps)
{
    const uint8x16_t first = PIXEL(0), second = PIXEL(3), third = PIXEL(6), fourth = PIXEL(9);
    int32x4_t sum = vdupq_n_s32(HALF);
    for (; taps >= 4; taps -= 4, in += 12, weights += 4) {
        const uint8x16_t bytes = vld1q_u8(in);
        const int32x4_t four = vld1q_s32(weights);
        sum = vmlaq_laneq_s32(sum, vreinterpretq_s32_u8(vqtbl1q_u8(bytes, first)), four, 0);
        sum = vmlaq_laneq_s32(sum, vreinterpretq_s32_u8(vqtbl1q_u8(bytes, second)), four, 1);
        sum = vmlaq_laneq_s32(sum, vreinterpretq_s32_u8(vqtbl1q_u8(bytes, third)), four, 2);
        sum = vmlaq_laneq_s32(sum, vreinterpretq_s32_u8(vqtbl1q_u8(bytes, fourth)), four, 3);
    }
    for (; taps > 0; taps--, in += 3, weights++)
        sum = vmlaq_n_s32(sum, vreinterpretq_s32_u8(vqtbl1q_u8(vld1q_u8(in), first)), *weights);
    return sum;
}
#endif

void crop_resize(const uint8_t *image, ptrdiff_t width, ptrdiff_t size,
                 const int32_t *x_first, const int32_t *x_weights, const int16_t *x_split,
                 ptrdiff_t x_taps,
                 const int32_t *y_first, const int32_t *y_weights, ptrdiff_t y_taps,
                 uint8_t *rows, int32_t *sums, float *planes, uint8_t *pixels)
{
    const ptrdiff_t top = y_first[0], bottom = y_first[size - 1] + y_taps;
    const ptrdiff_t row_length = 3 * size;
#ifndef __AVX2__
    (void)x_split;
#endif

    for (ptrdiff_t y = top; y < bottom; y++) {
        const uint8_t *image_row = image + y * width * 3;
        uint8_t *row = rows + (y - top) * row_length;
        ptrdiff_t x = 0;
#ifdef __AVX2__
        x = x_taps <= 4 ? resize_fours(image_row, size, x_first, x_split, 4, row)
                        : resize_fours(image_row, size, x_first, x_split, x_taps, row);
#endif
        for (; x < size; x++) {
            const uint8_t *in = image_row + x_first[x] * 3;
            const int32_t *weights = x_weights + x * x_taps;
#ifdef __aarch64__
            const int32x4 sum = (int32x4)resize_pixel(in, weights, x_taps);
#else
            int32x4 sum = {HALF, HALF, HALF, HALF};
            for (ptrdiff_t t = 0; t < x_taps; t++, in += 3) {
                /* Little-endian: its bytes are the channels; the fourth is the next pixel's. */
                uint32_t word;
                memcpy(&word, in, sizeof word);
                const int32x4 words = {word, word, word, word}, shifts = {0, 8, 16, 24};
                sum += weights[t] * (words >> shifts & 255);
            }
#endif
            for (int c = 0; c < 3; c++)
                row[c * size + x] = (uint8_t)(sum[c] >> BITS);
        }
    }

    for (ptrdiff_t y = 0; y < size; y++) {
        for (ptrdiff_t i = 0; i < row_length; i++)
            sums[i] = HALF;
        for (ptrdiff_t t = 0; t < y_taps; t++) {
            const uint8_t *row = rows + (y_first[y] - top + t) * row_length;
            const int32_t weight = y_weights[y * y_taps + t];
            for (ptrdiff_t i = 0; i < row_length; i++)
                sums[i] += weight * row[i];
        }
        for (int c = 0; c < 3; c++) {
            const int32_t *sum = sums + c * size;
            if (planes)
                for (ptrdiff_t x = 0; x < size; x++)
                    planes[(c * size + y) * size + x] = (float)(sum[x] >> BITS) / 255.0f;
            else
                for (ptrdiff_t x = 0; x < size; x++)
                    pixels[(y * size + x) * 3 + c] = (uint8_t)(sum[x] >> BITS);
        }
    }
}
