/* What a value is made of: JSON's tokens, found and judged, without a copy.

   Each function begins at p and returns where what it reads ends; NULL: it is not taken. */

#pragma once

#include <stdint.h>
#include <string.h>

typedef unsigned char Byte;

/* Deeper values go to the Python encoders: PostgreSQL and orjson have limits of their own, all far above. */
#define MAX_DEPTH 64
/* Digits of a number, and of its exponent: so no double overflows or becomes zero, and no numeric is too large. */
#define MAX_DIGITS 40
#define MAX_EXPONENT_DIGITS 2

static const Byte *skip_blanks(const Byte *p) {
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t') p++;
    return p;
}

static int is_digit(Byte c) { return c >= '0' && c <= '9'; }

static int is_continuation(Byte c) { return (c & 0xC0) == 0x80; }

/* Return the size of the character at p, which is not ASCII; 0 where it is not valid UTF-8 (RFC 3629, section 4). */
static int utf8_size(const Byte *p, const Byte *end) {
    if (p[0] >= 0xC2 && p[0] < 0xE0) return end - p >= 2 && is_continuation(p[1]) ? 2 : 0;
    if (p[0] >= 0xE0 && p[0] < 0xF0) {
        if (end - p < 3 || !is_continuation(p[1]) || !is_continuation(p[2])) return 0;
        if (p[0] == 0xE0 && p[1] < 0xA0) return 0;  /* overlong */
        return p[0] == 0xED && p[1] >= 0xA0 ? 0 : 3;  /* a surrogate */
    }
    if (p[0] >= 0xF0 && p[0] < 0xF5) {
        if (end - p < 4 || !is_continuation(p[1]) || !is_continuation(p[2]) || !is_continuation(p[3])) return 0;
        if (p[0] == 0xF0 && p[1] < 0x90) return 0;  /* overlong */
        return p[0] == 0xF4 && p[1] >= 0x90 ? 0 : 4;  /* above U+10FFFF */
    }
    return 0;
}

static int hex_value(Byte c) {
    if (is_digit(c)) return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Return the value of the four hexadecimal digits at p; -1 where they are not there. */
static int four_hex(const Byte *p, const Byte *end) {
    if (end - p < 4) return -1;
    int value = 0;
    for (int i = 0; i < 4; i++) {
        int digit = hex_value(p[i]);
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

/* Read the escape at p, a backslash; set the character. NULL for what is none, for half a surrogate pair and for NUL. */
static const Byte *read_escape(const Byte *p, const Byte *end, uint32_t *character) {
    switch (p[1]) {  /* after a backslash, so no farther than `end` */
    case '"': case '\\': case '/': *character = p[1]; return p + 2;
    case 'b': *character = '\b'; return p + 2;
    case 'f': *character = '\f'; return p + 2;
    case 'n': *character = '\n'; return p + 2;
    case 'r': *character = '\r'; return p + 2;
    case 't': *character = '\t'; return p + 2;
    case 'u': break;
    default: return NULL;
    }
    int first = four_hex(p + 2, end);
    if (first <= 0 || (first >= 0xDC00 && first < 0xE000)) return NULL;
    *character = (uint32_t)first;
    if (first < 0xD800 || first >= 0xE000) return p + 6;
    if (end - p < 12 || p[6] != '\\' || p[7] != 'u') return NULL;
    int second = four_hex(p + 8, end);
    if (second < 0xDC00 || second >= 0xE000) return NULL;
    *character = 0x10000 + ((uint32_t)(first - 0xD800) << 10) + (uint32_t)(second - 0xDC00);
    return p + 12;
}

/* Return where the first byte from p on stands that is not plain inside a string: a quote, a backslash, a control
   character, or no ASCII. Eight bytes at a time: the lowest mark of the classic tests for a byte below or equal to
   another is exact, those above it need not be. */
static const Byte *skip_plain(const Byte *p, const Byte *end) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    while (end - p >= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        uint64_t quote = word ^ ones * '"', backslash = word ^ ones * '\\';
        uint64_t marks = (((word - ones * 0x20) & ~word) | ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash)
                          | word) & high;
        if (marks) return p + (__builtin_ctzll(marks) >> 3);
        p += 8;
    }
#endif
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\') p++;
    return p;
}

/* Return where the string whose text begins at p has its closing quote. */
static const Byte *skip_text(const Byte *p, const Byte *end, int *has_escapes) {
    *has_escapes = 0;
    for (;;) {
        p = skip_plain(p, end);
        if (*p == '"') return p;
        if (*p == '\\') {
            uint32_t character;
            p = read_escape(p, end, &character);
            if (p == NULL) return NULL;
            *has_escapes = 1;
        } else {
            int size = *p < 0x80 ? 0 : utf8_size(p, end);  /* a control character, or the end */
            if (size == 0) return NULL;
            p += size;
        }
    }
}

typedef struct {
    int negative, has_fraction, has_exponent;
    const Byte *whole, *fraction;
    int whole_size, fraction_size, exponent;
} Number;

/* Read a number of JSON's grammar at p; return where it ends. */
static const Byte *read_number(const Byte *p, Number *number) {
    number->negative = *p == '-';
    p += number->negative;
    number->whole = p;
    while (is_digit(*p)) p++;
    if (p == number->whole || (*number->whole == '0' && p - number->whole > 1) || p - number->whole > MAX_DIGITS) return NULL;
    number->whole_size = (int)(p - number->whole);
    number->has_fraction = *p == '.';
    p += number->has_fraction;
    number->fraction = p;
    if (number->has_fraction) {
        while (is_digit(*p)) p++;
        if (p == number->fraction || p - number->fraction > MAX_DIGITS - number->whole_size) return NULL;
    }
    number->fraction_size = (int)(p - number->fraction);
    number->has_exponent = *p == 'e' || *p == 'E';
    number->exponent = 0;
    if (!number->has_exponent) return p;
    p++;
    int negative = *p == '-';
    p += *p == '-' || *p == '+';
    const Byte *digits = p;
    for (; is_digit(*p); p++) {
        if (p - digits == MAX_EXPONENT_DIGITS) return NULL;
        number->exponent = 10 * number->exponent + (*p - '0');
    }
    if (negative) number->exponent = -number->exponent;
    return p == digits ? NULL : p;
}

static const Byte *skip_word(const Byte *p, const Byte *end, const char *word, Py_ssize_t size) {
    return end - p >= size && memcmp(p, word, (size_t)size) == 0 ? p + size : NULL;
}

static const Byte *skip_value(const Byte *p, const Byte *end, int depth);

/* Return the end of the object or array whose first byte is at p. */
static const Byte *skip_container(const Byte *p, const Byte *end, int depth) {
    if (depth == MAX_DEPTH) return NULL;
    int is_object = *p == '{', has_escapes;
    Byte close = is_object ? '}' : ']';
    p = skip_blanks(p + 1);
    if (*p == close) return p + 1;
    for (;;) {
        if (is_object) {
            if (*p != '"') return NULL;
            p = skip_text(p + 1, end, &has_escapes);
            if (p == NULL) return NULL;
            p = skip_blanks(p + 1);
            if (*p != ':') return NULL;
            p = skip_blanks(p + 1);
        }
        p = skip_value(p, end, depth + 1);
        if (p == NULL) return NULL;
        p = skip_blanks(p);
        if (*p == close) return p + 1;
        if (*p != ',') return NULL;
        p = skip_blanks(p + 1);
    }
}

/* Return the end of the value at p: valid JSON, UTF-8, without NUL, and nothing that jsonb refuses. */
static const Byte *skip_value(const Byte *p, const Byte *end, int depth) {
    Number number;
    int has_escapes;
    switch (*p) {
    case '"':
        p = skip_text(p + 1, end, &has_escapes);
        return p == NULL ? NULL : p + 1;
    case '{': case '[': return skip_container(p, end, depth);
    case 't': return skip_word(p, end, "true", 4);
    case 'f': return skip_word(p, end, "false", 5);
    case 'n': return skip_word(p, end, "null", 4);
    default: return read_number(p, &number);
    }
}
