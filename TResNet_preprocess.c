/* The part of Pillow's bilinear resize that is kept: size x size pixels from the middle, as bytes or as floats.
 *
 * Same arithmetic as Pillow's for 8-bit channels, so the same bytes: weights with 22 fractional bits, the horizontal
 * pass first, its result rounded to 8 bits. TResNet_preprocess.py compiles this file and computes the weights. No sum
 * leaves 0..255: weights are not negative and add up to 1 but for less than half a unit of the 22nd bit each.
 *
 * image      [height, width, 3] bytes, and one more that is read but not used
 * x_first    [size] first source column of each kept column;  x_weights [size, x_taps]
 * y_first    [size] first source row of each kept row, ascending;  y_weights [size, y_taps]
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

void crop_resize(const uint8_t *image, ptrdiff_t width, ptrdiff_t size,
                 const int32_t *x_first, const int32_t *x_weights, ptrdiff_t x_taps,
                 const int32_t *y_first, const int32_t *y_weights, ptrdiff_t y_taps,
                 uint8_t *rows, int32_t *sums, float *planes, uint8_t *pixels)
{
    const ptrdiff_t top = y_first[0], bottom = y_first[size - 1] + y_taps, row_length = 3 * size;

    for (ptrdiff_t y = top; y < bottom; y++) {
        uint8_t *row = rows + (y - top) * row_length;
        for (ptrdiff_t x = 0; x < size; x++) {
            const uint8_t *in = image + (y * width + x_first[x]) * 3;
            const int32_t *weights = x_weights + x * x_taps;
            int32x4 sum = {HALF, HALF, HALF, HALF};
            for (ptrdiff_t t = 0; t < x_taps; t++, in += 3) {
                uint32_t word;  /* little-endian: the channels are its bytes, the fourth belongs to the next pixel */
                memcpy(&word, in, sizeof word);
                sum += weights[t] * ((int32x4){word, word, word, word} >> (int32x4){0, 8, 16, 24} & 255);
            }
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
