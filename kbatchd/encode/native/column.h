/* What a column takes: of the record's JSON, or of what the record has beside it.

   Each function takes the value at p, which is not null, and returns its end. */

#pragma once

#include <float.h>
#include <math.h>

#include "encoder.h"

/* A field of COPY has a signed length of 32 bits, and PostgreSQL takes no message above 1 GB. */
#define MAX_RECORD_BYTES 0x3FFFFFFF

static void put_big_endian(Byte *to, uint64_t value, int size) {
    for (int i = size - 1; i >= 0; i--, value >>= 8) to[i] = (Byte)value;
}

static void set_small(Field *field, uint64_t value, int size) {
    put_big_endian(field->small, value, size);
    field->bytes = field->small;
    field->size = size;
}

static const Byte *take_bool(Field *field, const Byte *p, const Byte *end) {
    set_small(field, *p == 't', 1);
    return *p == 't' ? skip_word(p, end, "true", 4) : skip_word(p, end, "false", 5);
}

static const Byte *take_integer(Field *field, const Byte *p, int size) {
    Number number;
    p = read_number(p, &number);
    if (p == NULL || number.has_fraction || number.has_exponent || number.whole_size > 19) return NULL;
    uint64_t magnitude = 0;  /* 19 digits are below 2^64 */
    for (int i = 0; i < number.whole_size; i++) magnitude = 10 * magnitude + (uint64_t)(number.whole[i] - '0');
    uint64_t largest = ((uint64_t)1 << (8 * size - 1)) - 1;
    if (magnitude > largest + (uint64_t)number.negative) return NULL;
    set_small(field, number.negative ? -magnitude : magnitude, size);
    return p;
}

/* Set the double that is nearest to the number between start and end. */
static int nearest_double(const Number *number, const Byte *start, const Byte *end, double *value) {
    static const double POWERS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    int digits = number->whole_size + number->fraction_size, power = number->exponent - number->fraction_size;
    if (FLT_EVAL_METHOD == 0 && digits <= 15 && power >= -22 && power <= 22) {
        /* Both are exact doubles, so one operation rounds once: W. D. Clinger, How to Read Floating Point Numbers
           Accurately (1990). */
        int64_t mantissa = 0;
        for (int i = 0; i < number->whole_size; i++) mantissa = 10 * mantissa + (number->whole[i] - '0');
        for (int i = 0; i < number->fraction_size; i++) mantissa = 10 * mantissa + (number->fraction[i] - '0');
        *value = power < 0 ? (double)mantissa / POWERS[-power] : (double)mantissa * POWERS[power];
        if (number->negative) *value = -*value;
        return 1;
    }
    char text[MAX_DIGITS + MAX_EXPONENT_DIGITS + 8], *stop;
    size_t size = (size_t)(end - start);
    if (size >= sizeof text) return 0;
    memcpy(text, start, size);
    text[size] = 0;
    *value = PyOS_string_to_double(text, &stop, NULL);
    if (stop == text + size) return 1;
    PyErr_Clear();
    return 0;
}

static const Byte *take_float(Field *field, const Byte *p, int size) {
    Number number;
    double value;
    const Byte *start = p;
    p = read_number(p, &number);
    if (p == NULL || !nearest_double(&number, start, p, &value)) return NULL;
    if (value == 0 && number.negative && !number.has_fraction && !number.has_exponent) return NULL;  /* the integer -0 */
    uint64_t bits;
    memcpy(&bits, &value, 8);
    if (size == 8) {
        set_small(field, bits, 8);
        return p;
    }
    /* A double in the middle between two float4 may be a literal that is not, and below 2^-126 are fewer bits. */
    if ((bits & 0x1FFFFFFF) == 0x10000000 || fabs(value) > FLT_MAX || (value != 0 && fabs(value) < FLT_MIN)) return NULL;
    float single = (float)value;
    uint32_t single_bits;
    memcpy(&single_bits, &single, 4);
    set_small(field, single_bits, 4);
    return p;
}

/* Write the digits in base 10,000, as fields.pack_numeric does. */
static void pack_numeric(Field *field, const Number *number) {
    int scale = number->fraction_size, size = number->whole_size + scale, first = 0, last = size;
    Byte digits[MAX_DIGITS];
    memcpy(digits, number->whole, (size_t)number->whole_size);
    memcpy(digits + number->whole_size, number->fraction, (size_t)scale);
    while (first < size && digits[first] == '0') first++;
    while (last > first && digits[last - 1] == '0') last--;
    int groups = 0, weight = 0;
    if (first < last) {
        int point = number->whole_size - first;  /* digits before the decimal point; below 0: zeros behind it */
        weight = (point + 3 + MAX_DIGITS * 4) / 4 - MAX_DIGITS - 1;  /* rounded down */
        int at = first - ((weight + 1) * 4 - point);  /* the groups begin with up to three zeros more */
        for (; at < last; groups++) {
            uint64_t group = 0;
            for (int i = 0; i < 4; i++, at++) group = 10 * group + (at >= first && at < last ? digits[at] - (uint64_t)'0' : 0);
            put_big_endian(field->small + 8 + 2 * groups, group, 2);
        }
    }
    put_big_endian(field->small, (uint64_t)groups, 2);
    put_big_endian(field->small + 2, (uint64_t)weight, 2);
    put_big_endian(field->small + 4, number->negative && groups ? 0x4000 : 0, 2);
    put_big_endian(field->small + 6, (uint64_t)scale, 2);
    field->bytes = field->small;
    field->size = 8 + 2 * groups;
}

/* Take a number without an exponent, or a string that looks like one. */
static const Byte *take_numeric(Field *field, const Byte *p) {
    Number number;
    int is_string = *p == '"';
    p = read_number(p + is_string, &number);
    if (p == NULL || number.has_exponent || (is_string && *p != '"')) return NULL;
    pack_numeric(field, &number);
    return p + is_string;
}

/* Give room in the scratch for an unescaped text. No string becomes longer, so all of a record's have room in its size. */
static Byte *scratch_room(Encoder *encoder, Py_ssize_t record_size) {
    if (encoder->scratch_used == 0 && encoder->scratch_size < record_size) {
        Byte *larger = PyMem_Realloc(encoder->scratch, (size_t)record_size);
        if (larger == NULL) {
            encoder->out_of_memory = 1;
            return NULL;
        }
        encoder->scratch = larger;
        encoder->scratch_size = record_size;
    }
    return encoder->scratch + encoder->scratch_used;
}

static Byte *put_character(Byte *to, uint32_t c) {
    if (c < 0x80) {
        *to++ = (Byte)c;
    } else if (c < 0x800) {
        *to++ = (Byte)(0xC0 | c >> 6);
        *to++ = (Byte)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *to++ = (Byte)(0xE0 | c >> 12);
        *to++ = (Byte)(0x80 | (c >> 6 & 0x3F));
        *to++ = (Byte)(0x80 | (c & 0x3F));
    } else {
        *to++ = (Byte)(0xF0 | c >> 18);
        *to++ = (Byte)(0x80 | (c >> 12 & 0x3F));
        *to++ = (Byte)(0x80 | (c >> 6 & 0x3F));
        *to++ = (Byte)(0x80 | (c & 0x3F));
    }
    return to;
}

/* Write a text that skip_text has found valid without its escapes. */
static int unescape(Encoder *encoder, Field *field, const Byte *p, const Byte *text_end, Py_ssize_t record_size) {
    Byte *to = scratch_room(encoder, record_size);
    if (to == NULL) return 0;
    field->bytes = to;
    while (p < text_end) {
        if (*p != '\\') {
            *to++ = *p++;
            continue;
        }
        uint32_t character = 0;
        p = read_escape(p, text_end, &character);
        to = put_character(to, character);
    }
    field->size = to - field->bytes;
    encoder->scratch_used += field->size;
    return 1;
}

/* Say whether a text has no more characters than the column takes; it may have, if they are blanks: that is not taken. */
static int fits(const Key *key, const Field *field) {
    if (key->limit < 0 || field->size <= key->limit) return 1;
    Py_ssize_t characters = 0;
    for (Py_ssize_t i = 0; i < field->size; i++) characters += !is_continuation(field->bytes[i]);
    return characters <= key->limit;
}

static const Byte *take_text(Encoder *encoder, const Key *key, Field *field, const Byte *p, const Byte *end,
                             Py_ssize_t record_size) {
    int has_escapes;
    if (*p != '"') return NULL;
    const Byte *start = p + 1;
    p = skip_text(start, end, &has_escapes);
    if (p == NULL) return NULL;
    field->bytes = start;
    field->size = p - start;
    if (has_escapes && !unescape(encoder, field, start, p, record_size)) return NULL;
    return fits(key, field) ? p + 1 : NULL;
}

/* Read the usual form, at p with 36 bytes: groups of 8, 4, 4, 4 and 12 digits. */
static int read_uuid(Field *field, const Byte *p) {
    for (int at = 0, size = 0; at < 36; at += 2) {
        if (at == 8 || at == 13 || at == 18 || at == 23) {
            if (p[at++] != '-') return 0;
        }
        int high = hex_value(p[at]), low = hex_value(p[at + 1]);
        if (high < 0 || low < 0) return 0;
        field->small[size++] = (Byte)(high << 4 | low);
    }
    field->bytes = field->small;
    field->size = 16;
    return 1;
}

static const Byte *take_uuid(Field *field, const Byte *p, const Byte *end) {
    return end - p >= 38 && p[0] == '"' && p[37] == '"' && read_uuid(field, p + 1) ? p + 38 : NULL;
}

/* Return the number of two digits; a large one where they are none. */
static int two_digits(const Byte *p) { return is_digit(p[0]) && is_digit(p[1]) ? 10 * (p[0] - '0') + p[1] - '0' : 1000; }

/* Set the days since 2000-01-01 of the YYYY-MM-DD at p, which has ten bytes. */
static int read_day(const Byte *p, int64_t *days) {
    static const int BEFORE_MONTH[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334, 365};
    int century = two_digits(p), of_century = two_digits(p + 2), month = two_digits(p + 5), day = two_digits(p + 8);
    if (century > 99 || of_century > 99 || p[4] != '-' || p[7] != '-' || month < 1 || month > 12 || day < 1) return 0;
    int year = 100 * century + of_century, leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    if (year < 1 || day > BEFORE_MONTH[month] - BEFORE_MONTH[month - 1] + (leap && month == 2)) return 0;
    int before = year - 1;
    *days = 365 * before + before / 4 - before / 100 + before / 400 + BEFORE_MONTH[month - 1] + (leap && month > 2) + day
            - 730120;  /* 2000-01-01 is day 730,120, from 0001-01-01 as day 1 */
    return 1;
}

static const Byte *take_date(Field *field, const Byte *p, const Byte *end) {
    int64_t days;
    if (end - p < 12 || p[0] != '"' || p[11] != '"' || !read_day(p + 1, &days)) return NULL;
    set_small(field, (uint64_t)days, 4);
    return p + 12;
}

/* Read a fraction of a second, behind its dot; up to 15 digits are exact in the two steps that PostgreSQL makes:
   a double, and that rounded to microseconds. */
static const Byte *read_microseconds(const Byte *p, int64_t *microseconds) {
    static const double POWERS[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15};
    const Byte *start = p;
    int64_t digits = 0;
    for (; is_digit(*p); p++) {
        if (p - start == 15) return NULL;
        digits = 10 * digits + (*p - '0');
    }
    if (p == start) return NULL;
    if (p - start > 6) {
        if (FLT_EVAL_METHOD != 0) return NULL;
        double fraction = (double)digits / POWERS[p - start];
        *microseconds = (int64_t)rint(fraction * 1e6);
        return p;
    }
    for (Py_ssize_t size = p - start; size < 6; size++) digits *= 10;
    *microseconds = digits;
    return p;
}

/* Take the plain forms of RFC 3339: with an offset for timestamptz, without one or with Z for timestamp. */
static const Byte *take_timestamp(Field *field, const Byte *p, const Byte *end, int with_zone) {
    int64_t days, microseconds = 0, seconds;
    if (end - p < 21 || *p++ != '"' || !read_day(p, &days)) return NULL;  /* both quotes, and 19 characters */
    int hour = two_digits(p + 11), minute = two_digits(p + 14), second = two_digits(p + 17);
    if ((p[10] != 'T' && p[10] != ' ') || hour > 23 || p[13] != ':' || minute > 59 || p[16] != ':' || second > 59) return NULL;
    seconds = days * 86400 + hour * 3600 + minute * 60 + second;
    p += 19;
    if (*p == '.') {
        p = read_microseconds(p + 1, &microseconds);
        if (p == NULL) return NULL;
    }
    if (*p == 'Z') {
        p++;
    } else if (with_zone) {
        if ((*p != '+' && *p != '-') || end - p < 7 || p[3] != ':') return NULL;  /* sign, hh:mm, quote */
        int hours = two_digits(p + 1), minutes = two_digits(p + 4);
        if (hours > 15 || minutes > 59) return NULL;
        seconds -= (*p == '-' ? -1 : 1) * (hours * 3600 + minutes * 60);
        p += 6;
    }
    if (*p != '"') return NULL;
    set_small(field, (uint64_t)(seconds * 1000000 + microseconds), 8);
    return p + 1;
}

/* Take a whole number of units from 1970, within what PostgreSQL can hold: 4700 BC to 290000. */
static const Byte *take_epoch(Field *field, const Byte *p, int64_t unit, int is_date) {
    const int64_t earliest = -210000000000000000, latest = 9000000000000000000, year_2000 = 946684800000000, day = 86400000000;
    Number number;
    p = read_number(p, &number);
    if (p == NULL || number.has_fraction || number.has_exponent || number.whole_size > 18) return NULL;
    int64_t count = 0;
    for (int i = 0; i < number.whole_size; i++) count = 10 * count + (number.whole[i] - '0');
    if (number.negative) count = -count;
    if (count <= earliest / unit || count >= latest / unit) return NULL;
    int64_t microseconds = count * unit - year_2000;
    if (!is_date) {
        set_small(field, (uint64_t)microseconds, 8);
    } else {
        int64_t days = microseconds / day - (microseconds % day < 0);
        set_small(field, (uint64_t)days, 4);
    }
    return p;
}

static const Byte *take_json(Field *field, const Byte *p, const Byte *end) {
    field->bytes = p;
    p = skip_value(p, end, 1);
    if (p != NULL) field->size = p - field->bytes;
    return p;
}

static int base64_value(Byte c) {
    if (c >= 'A' && c <= 'Z') return c - 'A';
    if (c >= 'a' && c <= 'z') return c - 'a' + 26;
    if (is_digit(c)) return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Take base64 without blanks, padded, without bits that do not count. */
static const Byte *take_base64(Encoder *encoder, Field *field, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    if (*p++ != '"') return NULL;
    Byte *to = scratch_room(encoder, record_size);
    if (to == NULL) return NULL;
    field->bytes = to;
    while (*p != '"') {
        if (end - p < 5) return NULL;  /* four characters and a quote */
        int padding = p[3] == '=' ? 1 + (p[2] == '=') : 0;
        uint32_t group = 0;
        for (int i = 0; i < 4; i++) {
            int value = i < 4 - padding ? base64_value(p[i]) : 0;
            if (value < 0) return NULL;
            group = group << 6 | (uint32_t)value;
        }
        if (group & ((1u << 8 * padding) - 1)) return NULL;
        for (int i = 0; i < 3 - padding; i++) *to++ = (Byte)(group >> (16 - 8 * i));
        p += 4;
        if (padding && *p != '"') return NULL;
    }
    field->size = to - field->bytes;
    encoder->scratch_used += field->size;
    return p + 1;
}

static const Byte *take_field(Encoder *encoder, const Key *key, Field *field, const Byte *p, const Byte *end,
                              Py_ssize_t record_size) {
    field->state = PRESENT;
    switch (key->kind) {
    case BOOL: return take_bool(field, p, end);
    case INT2: return take_integer(field, p, 2);
    case INT4: return take_integer(field, p, 4);
    case INT8: return take_integer(field, p, 8);
    case FLOAT4: return take_float(field, p, 4);
    case FLOAT8: return take_float(field, p, 8);
    case NUMERIC: return take_numeric(field, p);
    case TEXT: return take_text(encoder, key, field, p, end, record_size);
    case UUID: return take_uuid(field, p, end);
    case DATE: return take_date(field, p, end);
    case TIMESTAMP: return take_timestamp(field, p, end, 0);
    case TIMESTAMPTZ: return take_timestamp(field, p, end, 1);
    case JSON: case JSONB: return take_json(field, p, end);
    case BYTEA: return take_base64(encoder, field, p, end, record_size);
    case EPOCH_DATE: case EPOCH: return take_epoch(field, p, key->limit, key->kind == EPOCH_DATE);
    default: return NULL;
    }
}

/* Of what the record has beside its value. */

/* Say whether it is UTF-8 without a NUL. */
static int is_text(const Byte *p, const Byte *end) {
    while (p < end) {
        int size = *p < 0x80 ? *p != 0 : utf8_size(p, end);
        if (size == 0) return 0;
        p += size;
    }
    return 1;
}

/* Take bytes that are no JSON's: a text without quotes around it, or a number. (It does not call take_field, nor is_text
   skip_plain: what is called in one place is compiled into it, and that is 5 % of a record without metadata.) */
static int take_bytes(const Key *key, Field *field, const Byte *p, Py_ssize_t size) {
    if (size > MAX_RECORD_BYTES) return 0;
    field->state = PRESENT;
    field->bytes = p;
    field->size = size;
    switch (key->kind) {
    case BYTEA: return 1;
    case TEXT: return is_text(p, p + size) && fits(key, field);
    case UUID: return size == 36 && read_uuid(field, p);
    case INT2: return take_integer(field, p, 2) == p + size;
    case INT4: return take_integer(field, p, 4) == p + size;
    case INT8: return take_integer(field, p, 8) == p + size;
    case NUMERIC: return take_numeric(field, p) == p + size;
    case EPOCH_DATE: case EPOCH: return take_epoch(field, p, key->limit, key->kind == EPOCH_DATE) == p + size;
    default: return 0;
    }
}

static int take_number(const Key *key, Field *field, int64_t number) {
    Byte digits[21], *end = digits + 20, *start = end;
    uint64_t rest = number < 0 ? -(uint64_t)number : (uint64_t)number;
    *end = 0;
    do *--start = (Byte)('0' + rest % 10); while (rest /= 10);
    if (number < 0) *--start = '-';
    if (key->kind != TEXT) return take_bytes(key, field, start, end - start);
    memcpy(field->small, start, (size_t)(end - start));
    return take_bytes(key, field, field->small, end - start);
}
