/* The rank of each image's label among its scores, for results as ais_bench writes them.
 *
 * Text is read strictly: per class a number as printf("%f ") writes it, up to 999999999.999999, then one newline. Numbers
 * with six decimals and at most fifteen digits are compared as their millionths, which a double holds exactly. Other
 * files begin with a header that all of them share (of NumPy files; none of raw arrays), and then hold finite
 * little-endian float32 values. TResNet_postprocess.py reads the files itself that are refused here (rank -1).
 * No state is shared: several threads may call this at once.
 *
 * paths      [files] each ended by a NUL, one behind the other
 * header     [before] how files of float32 values begin, or NULL for text
 * labels     [files] the class of each, 0 <= label < classes
 * ranks      [files] out: how many classes come before the label (greater, or equal and of lower index), or -1
 * checksums  [files] out: the CRC-32 of each file's content, as zlib computes it, where there is a rank; or NULL
 * scores     [files][classes] out: the values, as Python reads them, where there is a rank; or NULL
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "eight characters are read as a little-endian number"
#endif

#define LONGEST 18      /* characters: "-999999999.999999 "; float32 values take up less */
#define PADDING 8       /* bytes behind the text that may be read, zero */

/* Tables for the CRC-32 of eight bytes at a time; table k is for a byte that k more bytes follow. */
static void make_tables(uint32_t tables[8][256])
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
        tables[0][byte] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int byte = 0; byte < 256; byte++)
            tables[k][byte] = tables[k - 1][byte] >> 8 ^ tables[0][tables[k - 1][byte] & 0xFF];
}

static uint32_t crc32(const uint32_t tables[8][256], const char *data, ptrdiff_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, 8);
        word ^= crc;
        crc = tables[7][word & 0xFF] ^ tables[6][word >> 8 & 0xFF] ^ tables[5][word >> 16 & 0xFF]
            ^ tables[4][word >> 24 & 0xFF] ^ tables[3][word >> 32 & 0xFF] ^ tables[2][word >> 40 & 0xFF]
            ^ tables[1][word >> 48 & 0xFF] ^ tables[0][word >> 56];
    }
    for (; size > 0; data++, size--)
        crc = crc >> 8 ^ tables[0][(crc ^ (unsigned char)*data) & 0xFF];
    return ~crc;
}

/* The number of bytes of a regular file that were read, at most `limit`; or -1. Nothing else is opened. */
static ptrdiff_t read_file(const char *path, char *text, ptrdiff_t limit)
{
    struct stat status;
    ptrdiff_t size = 0, more = -1;
    int file;
    if (lstat(path, &status) != 0 || !S_ISREG(status.st_mode))
        return -1;
    file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (file < 0)
        return -1;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode)) {
        limit = status.st_size < limit ? status.st_size : limit;   /* saves the read that only finds the end */
        do {
            more = read(file, text + size, limit - size);
            size += more > 0 ? more : 0;
        } while (size < limit && (more > 0 || (more < 0 && errno == EINTR)));
    }
    close(file);
    return more < 0 ? -1 : size;
}

/* Six-decimal numbers as millionths; 0 unless the text is exactly `classes` of them and a newline. */
static int parse_text(const char *text, ptrdiff_t size, ptrdiff_t classes, double *values)
{
    const char *at = text;
    for (ptrdiff_t i = 0; i < classes; i++) {
        const int64_t minus = *at == '-';
        int64_t whole = 0;
        uint64_t rest;
        at += minus;
        const char *first = at;
        for (; *at >= '0' && *at <= '9'; at++) {
            if (at - first == 9)
                return 0;
            whole = whole * 10 + (*at - '0');
        }
        if (at == first)
            return 0;
        memcpy(&rest, at, 8);
        rest ^= 0x203030303030302E;     /* ".000000 ": leaves the digits' values, each in its byte, and two zeros */
        if ((rest | (rest + 0x0006060606060600)) & 0xFFF0F0F0F0F0F0FF)
            return 0;
        rest = (rest << 8) * 10 + rest;  /* numbers of two digits, in every other byte */
        rest = (rest >> 16 & 0xFF) * 10000 + (rest >> 32 & 0xFF) * 100 + (rest >> 48 & 0xFF);
        values[i] = (double)(((whole * 1000000 + (int64_t)rest) ^ -minus) + minus);
        at += 8;
    }
    return at + 1 == text + size && *at == '\n';
}

/* float32 values; 0 unless there are exactly `classes` of them, all finite. */
static int parse_float32(const char *data, ptrdiff_t size, ptrdiff_t classes, double *values)
{
    float value;
    int finite = 1;
    if (size != classes * (ptrdiff_t)sizeof value)
        return 0;
    for (ptrdiff_t i = 0; i < classes; i++) {
        memcpy(&value, data + i * sizeof value, sizeof value);
        values[i] = value;
        finite &= isfinite(value) != 0;
    }
    return finite;
}

void label_ranks(const char *paths, ptrdiff_t files, ptrdiff_t classes, const char *header, ptrdiff_t before,
                 const int64_t *labels, int32_t *ranks, uint32_t *checksums, double *scores)
{
    const ptrdiff_t limit = before + LONGEST * classes + 2;  /* a byte more than any good file has */
    double *values = malloc(sizeof *values * classes);
    char *data = malloc(limit + PADDING);
    uint32_t tables[8][256];

    make_tables(tables);
    for (ptrdiff_t f = 0; f < files; f++, paths += strlen(paths) + 1) {
        const ptrdiff_t size = values && data ? read_file(paths, data, limit) : -1;
        ranks[f] = -1;
        if (size < before || (header && memcmp(data, header, before)))
            continue;
        memset(data + size, 0, PADDING);
        if (!(header ? parse_float32(data + before, size - before, classes, values)
                     : parse_text(data, size, classes, values)))
            continue;
        const double own = values[labels[f]];
        int32_t first = 0;
        for (ptrdiff_t i = 0; i < classes; i++)
            first += values[i] > own;
        for (ptrdiff_t i = 0; i < labels[f]; i++)
            first += values[i] == own;
        ranks[f] = first;
        if (scores)                     /* a quotient is rounded as the decimal number itself would be */
            for (ptrdiff_t i = 0; i < classes; i++)
                scores[f * classes + i] = header ? values[i] : values[i] / 1e6;
        if (checksums)
            checksums[f] = crc32((const uint32_t (*)[256])tables, data, size);
    }
    free(values);
    free(data);
}
