/* The compiled lane: a plain record's JSON to a row of PostgreSQL's binary COPY, in one pass, without Python objects.

   It takes only what is plain and what it is certain of; of anything else it says "not taken", and the Python lanes
   (rows.py) decide. So no error has a name here: a function that does not take what it finds returns NULL. What it takes
   becomes, byte for byte, the row that the Python lanes would make, but for two things whose value is the same: jsonb gets
   the message's own text, and a numeric with a scale the digits as they were written.

   What a column takes of the record beside its value (its key, its offset ...) is asked of the record by the name of its
   method, and is then taken as JSON's would be.

   Optional: without a compiler the package has no such module. Called by the row encoder in the worker's poll loop.

   The bytes are hostile. A `bytes` object ends with a NUL that is not counted, so one byte at `end` may be looked at, and
   no token begins or goes on with a NUL; whoever looks at more compares with `end` first. Recursion is bounded by
   MAX_DEPTH, every number by MAX_DIGITS. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

typedef unsigned char Byte;

/* Deeper values go to the Python lanes: PostgreSQL and orjson have limits of their own, all far above. */
#define MAX_DEPTH 64
/* Digits of a number, and of its exponent: so no double overflows or becomes zero, and no numeric is too large. */
#define MAX_DIGITS 40
#define MAX_EXPONENT_DIGITS 2
/* A field of COPY has a signed length of 32 bits, and PostgreSQL takes no message above 1 GB. */
#define MAX_RECORD_BYTES 0x3FFFFFFF
/* A numeric's head and its groups of four digits; no type of fixed width is larger. */
#define MAX_SMALL_BYTES (8 + 2 * (MAX_DIGITS / 4 + 2))
/* Room for unescaped texts that is kept from record to record. */
#define KEPT_SCRATCH_BYTES 65536

enum {
    BOOL, INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC, TEXT, UUID, DATE, TIMESTAMP, TIMESTAMPTZ, JSON, JSONB, BYTEA,
    EPOCH_DATE, EPOCH,  /* times that are numbers */
    OBJECT              /* no column, but an object that columns are in */
};

static const struct { const char *name; int kind; } TYPES[] = {
    {"bool", BOOL}, {"int2", INT2}, {"int4", INT4}, {"int8", INT8}, {"float4", FLOAT4}, {"float8", FLOAT8},
    {"numeric", NUMERIC}, {"text", TEXT}, {"varchar", TEXT}, {"uuid", UUID}, {"date", DATE}, {"timestamp", TIMESTAMP},
    {"timestamptz", TIMESTAMPTZ}, {"json", JSON}, {"jsonb", JSONB}, {"bytea", BYTEA},
    {"epoch date", EPOCH_DATE}, {"epoch", EPOCH},
};

/* A key of the record's JSON, or of an object in it: that of a column, or of an object that columns are in. A column that
   is fed by something else of the record has no key there, but a method. */
typedef struct {
    Byte *name;            /* UTF-8, not terminated */
    Py_ssize_t name_size;  /* -1: JSON can write this name with escapes only, and keys with escapes are not taken */
    PyObject *method;      /* the name of the record's method; NULL: it is a key of JSON */
    PyObject *held;        /* what the method gave, as long as the field's bytes may be in it */
    PyObject *missing;     /* bytes: what the row has, with its length, where there is no such key; NULL: it is not taken */
    int parent;            /* the object that the key is in; -1: none */
    int kind;
    Py_ssize_t limit;      /* characters a text may have, -1: any number; microseconds in the unit of a time */
    int not_null;
    int next;              /* the key that came after this one in the record before; -1: none */
    int first;             /* the key that came first in this object in the record before; -1: none */
} Key;

typedef struct {
    enum { ABSENT, NULL_FIELD, PRESENT } state;
    const Byte *bytes;     /* in the message, in the scratch, or `small` */
    Py_ssize_t size;
    Byte small[MAX_SMALL_BYTES];
} Field;

typedef struct {
    PyObject_HEAD
    int count;             /* of columns: their keys come first, in the order of the row */
    int key_count;         /* behind them the objects: the record itself is `count` */
    Key *keys;
    Field *fields;         /* of each key */
    int closed;            /* the object that may not have other keys; -1: all may */
    int asks;              /* whether a column has a method */
    int16_t *slots;        /* of each key its index, where the hash of its name says, or in the next free one; -1: free */
    uint32_t slot_mask;    /* of a power of two that is at least twice the keys */
    Byte *scratch;
    Py_ssize_t scratch_size, scratch_used;
    int out_of_memory;
} Lane;

/* What a message is made of. */

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

/* Fields. Each function takes the value at p, which is not null, and returns its end. */

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
static Byte *scratch_room(Lane *lane, Py_ssize_t record_size) {
    if (lane->scratch_used == 0 && lane->scratch_size < record_size) {
        Byte *larger = PyMem_Realloc(lane->scratch, (size_t)record_size);
        if (larger == NULL) {
            lane->out_of_memory = 1;
            return NULL;
        }
        lane->scratch = larger;
        lane->scratch_size = record_size;
    }
    return lane->scratch + lane->scratch_used;
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
static int unescape(Lane *lane, Field *field, const Byte *p, const Byte *text_end, Py_ssize_t record_size) {
    Byte *to = scratch_room(lane, record_size);
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
    lane->scratch_used += field->size;
    return 1;
}

/* Say whether a text has no more characters than the column takes; it may have, if they are blanks: that is not taken. */
static int fits(const Key *key, const Field *field) {
    if (key->limit < 0 || field->size <= key->limit) return 1;
    Py_ssize_t characters = 0;
    for (Py_ssize_t i = 0; i < field->size; i++) characters += !is_continuation(field->bytes[i]);
    return characters <= key->limit;
}

static const Byte *take_text(Lane *lane, const Key *key, Field *field, const Byte *p, const Byte *end,
                             Py_ssize_t record_size) {
    int has_escapes;
    if (*p != '"') return NULL;
    const Byte *start = p + 1;
    p = skip_text(start, end, &has_escapes);
    if (p == NULL) return NULL;
    field->bytes = start;
    field->size = p - start;
    if (has_escapes && !unescape(lane, field, start, p, record_size)) return NULL;
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
static const Byte *take_base64(Lane *lane, Field *field, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    if (*p++ != '"') return NULL;
    Byte *to = scratch_room(lane, record_size);
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
    lane->scratch_used += field->size;
    return p + 1;
}

static const Byte *take_field(Lane *lane, const Key *key, Field *field, const Byte *p, const Byte *end,
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
    case TEXT: return take_text(lane, key, field, p, end, record_size);
    case UUID: return take_uuid(field, p, end);
    case DATE: return take_date(field, p, end);
    case TIMESTAMP: return take_timestamp(field, p, end, 0);
    case TIMESTAMPTZ: return take_timestamp(field, p, end, 1);
    case JSON: case JSONB: return take_json(field, p, end);
    case BYTEA: return take_base64(lane, field, p, end, record_size);
    case EPOCH_DATE: case EPOCH: return take_epoch(field, p, key->limit, key->kind == EPOCH_DATE);
    default: return NULL;
    }
}

/* What the record has beside its value. */

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

/* Ask the record for what a column takes of it: a number, a text, bytes, or (kind, time), a time below 0 being none.
   0 when it is not taken: also what raises, since the Python lanes alone say what is wrong with a record. With an
   exception what is no record's: that there is no memory, and what is no Exception. */
static int ask_record(Key *key, Field *field, PyObject *record) {
    PyObject *found = key->held = PyObject_CallMethodNoArgs(record, key->method);
    if (found == NULL) {
        if (PyErr_ExceptionMatches(PyExc_Exception) && !PyErr_ExceptionMatches(PyExc_MemoryError)) PyErr_Clear();
        return 0;
    }
    if (found == Py_None) return 1;
    int is_time = PyTuple_CheckExact(found) && PyTuple_GET_SIZE(found) == 2;
    if (is_time) found = PyTuple_GET_ITEM(found, 1);
    if (PyLong_CheckExact(found)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(found, &overflow);
        if (is_time && number < 0) return 1;
        return !overflow && take_number(key, field, number);
    }
    if (PyBytes_CheckExact(found)) {
        return take_bytes(key, field, (const Byte *)PyBytes_AS_STRING(found), PyBytes_GET_SIZE(found));
    }
    Py_ssize_t size;
    const char *text = PyUnicode_CheckExact(found) ? PyUnicode_AsUTF8AndSize(found, &size) : NULL;
    if (text != NULL) return take_bytes(key, field, (const Byte *)text, size);
    PyErr_Clear();  /* half a surrogate pair */
    return 0;
}

/* Ask it for all of them. */
static int read_beside(Lane *lane, PyObject *record) {
    for (int i = 0; i < lane->count; i++) {
        if (lane->keys[i].method != NULL && !ask_record(&lane->keys[i], &lane->fields[i], record)) return 0;
    }
    return 1;
}

/* Records. */

/* Say where to look first for a name within an object: FNV-1a. */
static uint32_t slot_of(const Lane *lane, int object, const Byte *name, Py_ssize_t size) {
    uint32_t hash = 2166136261u ^ (uint32_t)object;
    for (Py_ssize_t i = 0; i < size; i++) hash = (hash ^ name[i]) * 16777619u;
    return (hash ^ hash >> 15) & lane->slot_mask;
}

/* Return the index of a name within an object; -1: nobody wants it. The work does not grow with the columns. */
static int find_key(const Lane *lane, int object, const Byte *name, Py_ssize_t size) {
    for (uint32_t slot = slot_of(lane, object, name, size);; slot = (slot + 1) & lane->slot_mask) {
        int index = lane->slots[slot];
        if (index < 0) return -1;
        const Key *key = &lane->keys[index];
        if (key->parent == object && key->name_size == size && memcmp(name, key->name, (size_t)size) == 0) return index;
    }
}

/* Read the key of an object, whose text begins at p; set its index, or -1. A producer writes its keys in one order: the
   one at `guess` is compared first, and the guess corrected for the next record. */
static const Byte *read_key(Lane *lane, int object, const Byte *p, const Byte *end, int *guess, int *found) {
    int has_escapes;
    if (*guess >= 0) {
        const Key *key = &lane->keys[*guess];
        if (end - p > key->name_size && p[key->name_size] == '"' && memcmp(p, key->name, (size_t)key->name_size) == 0) {
            *found = *guess;
            return p + key->name_size + 1;
        }
    }
    const Byte *start = p;
    p = skip_text(p, end, &has_escapes);
    if (p == NULL || has_escapes) return NULL;
    *found = find_key(lane, object, start, p - start);
    if (*found >= 0) *guess = *found;
    return p + 1;
}

static const Byte *read_object(Lane *lane, int object, const Byte *p, const Byte *end, Py_ssize_t record_size);

/* Read the value at p into the key's field; of a key that is there twice, neither is taken. */
static const Byte *read_field(Lane *lane, int index, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    const Key *key = &lane->keys[index];
    Field *field = &lane->fields[index];
    if (field->state != ABSENT) return NULL;
    if (*p == 'n') {
        field->state = NULL_FIELD;
        return key->not_null ? NULL : skip_word(p, end, "null", 4);
    }
    if (key->kind == OBJECT) return read_object(lane, index, p, end, record_size);
    return take_field(lane, key, field, p, end, record_size);
}

/* Read the object at p into the fields of its keys, and of those of the objects in it; return its end. */
static const Byte *read_object(Lane *lane, int object, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    int *guess = &lane->keys[object].first, found;
    lane->fields[object].state = PRESENT;
    if (*p != '{') return NULL;
    p = skip_blanks(p + 1);
    if (*p == '}') return p + 1;
    for (;;) {
        if (*p != '"') return NULL;
        p = read_key(lane, object, p + 1, end, guess, &found);
        if (p == NULL) return NULL;
        p = skip_blanks(p);
        if (*p != ':') return NULL;
        p = skip_blanks(p + 1);
        if (found >= 0) {
            p = read_field(lane, found, p, end, record_size);
            guess = &lane->keys[found].next;
        } else {
            p = object == lane->closed ? NULL : skip_value(p, end, 1);
        }
        if (p == NULL) return NULL;
        p = skip_blanks(p);
        if (*p == '}') return p + 1;
        if (*p != ',') return NULL;
        p = skip_blanks(p + 1);
    }
}

/* Read a whole record into the fields; 0 when it is not taken. */
static int read_record(Lane *lane, const Byte *p, Py_ssize_t size) {
    const Byte *end = p + size;
    for (int i = 0; i < lane->key_count; i++) lane->fields[i].state = ABSENT;
    lane->scratch_used = 0;
    p = read_object(lane, lane->count, skip_blanks(p), end, size);
    return p != NULL && skip_blanks(p) == end;
}

/* Make the row of the fields; NULL without an exception when the record is not taken. */
static PyObject *make_row(Lane *lane) {
    Py_ssize_t size = 2;
    for (int i = 0; i < lane->count; i++) {
        const Key *key = &lane->keys[i];
        const Field *field = &lane->fields[i];
        if (field->state == PRESENT) size += 4 + field->size + (key->kind == JSONB);
        else if (field->state == NULL_FIELD) size += 4;
        else if (key->missing != NULL) size += PyBytes_GET_SIZE(key->missing);
        else return NULL;
    }
    for (int i = lane->count; i < lane->key_count; i++) {
        if (lane->keys[i].not_null && lane->fields[i].state != PRESENT) return NULL;
    }
    PyObject *row = PyBytes_FromStringAndSize(NULL, size);
    if (row == NULL) return NULL;
    Byte *to = (Byte *)PyBytes_AS_STRING(row);
    put_big_endian(to, (uint64_t)lane->count, 2);
    to += 2;
    for (int i = 0; i < lane->count; i++) {
        const Field *field = &lane->fields[i];
        if (field->state == PRESENT) {
            int version = lane->keys[i].kind == JSONB;
            put_big_endian(to, (uint64_t)(field->size + version), 4);
            to += 4;
            if (version) *to++ = 1;
            memcpy(to, field->bytes, (size_t)field->size);
            to += field->size;
        } else if (field->state == NULL_FIELD) {
            put_big_endian(to, UINT64_MAX, 4);
            to += 4;
        } else {
            const PyObject *missing = lane->keys[i].missing;
            memcpy(to, PyBytes_AS_STRING(missing), (size_t)PyBytes_GET_SIZE(missing));
            to += PyBytes_GET_SIZE(missing);
        }
    }
    return row;
}

/* Return the row of one record; NULL without an exception when it is not taken. `record`: NULL if nobody asks it. */
static PyObject *encode_record(Lane *lane, PyObject *value, PyObject *record) {
    if (!PyBytes_CheckExact(value) || PyBytes_GET_SIZE(value) > MAX_RECORD_BYTES) return NULL;
    int taken = read_record(lane, (const Byte *)PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (taken && record != NULL) taken = read_beside(lane, record);
    PyObject *row = taken ? make_row(lane) : NULL;
    if (lane->out_of_memory) {
        lane->out_of_memory = 0;
        PyErr_NoMemory();
    }
    return row;
}

/* Return the row of a record that is asked: its methods may be Python code, so what is used meanwhile is held. */
static PyObject *encode_asking(Lane *lane, PyObject *value, PyObject *records, Py_ssize_t at) {
    if (at >= PySequence_Fast_GET_SIZE(records)) {
        PyErr_SetString(PyExc_ValueError, "a column is fed by the record, and there are more values than records");
        return NULL;
    }
    PyObject *record = Py_NewRef(PySequence_Fast_GET_ITEM(records, at));
    Py_INCREF(value);
    PyObject *row = encode_record(lane, value, record);
    for (int i = 0; i < lane->count; i++) Py_CLEAR(lane->keys[i].held);
    Py_DECREF(value);
    Py_DECREF(record);
    return row;
}

static PyObject *lane_encode(Lane *lane, PyObject *const *arguments, Py_ssize_t count) {
    if (count != 4 || !PyList_CheckExact(arguments[3])) {
        PyErr_SetString(PyExc_TypeError, "encode(records, values, start, rows: list)");
        return NULL;
    }
    Py_ssize_t at = PyNumber_AsSsize_t(arguments[2], PyExc_OverflowError);
    if (at == -1 && PyErr_Occurred()) return NULL;
    PyObject *records = PySequence_Fast(arguments[0], "records are no sequence");
    PyObject *values = records == NULL ? NULL : PySequence_Fast(arguments[1], "values are no sequence");
    int failed = values == NULL;
    for (at = at < 0 ? 0 : at; !failed && at < PySequence_Fast_GET_SIZE(values); at++) {
        PyObject *value = PySequence_Fast_GET_ITEM(values, at);
        PyObject *row = lane->asks ? encode_asking(lane, value, records, at) : encode_record(lane, value, NULL);
        failed = row == NULL ? PyErr_Occurred() != NULL : PyList_Append(arguments[3], row) < 0;
        Py_XDECREF(row);
        if (row == NULL) break;
    }
    Py_XDECREF(values);
    Py_XDECREF(records);
    if (lane->scratch_size > KEPT_SCRATCH_BYTES) {
        PyMem_Free(lane->scratch);
        lane->scratch = NULL;
        lane->scratch_size = 0;
    }
    return failed ? NULL : PyLong_FromSsize_t(at);
}

/* Keep one step of a path as a key of the object `parent`. */
static int set_key(Key *key, PyObject *name, int parent) {
    Py_ssize_t size;
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &size) : NULL;
    if (text == NULL) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a step of a path is no str");
        return -1;
    }
    key->name = PyMem_Malloc((size_t)size + 1);
    if (key->name == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    memcpy(key->name, text, (size_t)size);
    key->name_size = size;
    for (Py_ssize_t i = 0; i < size; i++) {
        if (key->name[i] < 0x20 || key->name[i] == '"' || key->name[i] == '\\') key->name_size = -1;
    }
    key->parent = parent;
    key->next = key->first = -1;
    return 0;
}

/* Return the object `name` in the object `parent`, which is made if it is not there; -1 with an exception. */
static int find_object(Lane *lane, PyObject *name, int parent) {
    Key *made = &lane->keys[lane->key_count];
    if (set_key(made, name, parent) < 0) return -1;
    for (int i = lane->count; i < lane->key_count; i++) {
        const Key *key = &lane->keys[i];
        if (key->parent == parent && key->name_size == made->name_size && made->name_size >= 0
            && memcmp(key->name, made->name, (size_t)made->name_size) == 0) {
            PyMem_Free(made->name);
            made->name = NULL;
            return i;
        }
    }
    made->kind = OBJECT;
    return lane->key_count++;
}

/* Return the object that a path's steps lead to, but for the last of them. */
static int find_parent(Lane *lane, PyObject *path, Py_ssize_t steps) {
    int object = lane->count;
    for (Py_ssize_t i = 0; i < steps && object >= 0; i++) object = find_object(lane, PyTuple_GET_ITEM(path, i), object);
    return object;
}

/* Keep one column: (path or method, type, limit, missing, not_null). */
static int set_column(Lane *lane, int index, PyObject *description) {
    Key *key = &lane->keys[index];
    const char *type;
    PyObject *where, *missing;
    if (!PyArg_ParseTuple(description, "OsnOp", &where, &type, &key->limit, &missing, &key->not_null)) return -1;
    key->kind = -1;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(TYPES); i++) {
        if (strcmp(TYPES[i].name, type) == 0) key->kind = TYPES[i].kind;
    }
    int is_path = PyTuple_Check(where) && PyTuple_GET_SIZE(where) > 0;
    if (key->kind < 0 || (key->kind >= EPOCH_DATE && key->limit < 1) || !(is_path || PyUnicode_CheckExact(where))
        || !(missing == Py_None || PyBytes_CheckExact(missing))) {
        PyErr_Format(PyExc_ValueError, "no such column: %R", description);
        return -1;
    }
    if (missing != Py_None) key->missing = Py_NewRef(missing);
    if (!is_path) {
        key->method = Py_NewRef(where);
        key->name_size = key->parent = key->next = key->first = -1;
        lane->asks = 1;
        return 0;
    }
    Py_ssize_t last = PyTuple_GET_SIZE(where) - 1;
    int parent = find_parent(lane, where, last);
    return parent < 0 ? -1 : set_key(key, PyTuple_GET_ITEM(where, last), parent);
}

/* Make the table of names; of two keys with one name in one object the first is found first. */
static int set_slots(Lane *lane) {
    uint32_t size = 4;
    while (size < 2 * (uint32_t)lane->key_count) size *= 2;
    lane->slots = PyMem_Malloc(size * sizeof *lane->slots);
    if (lane->slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    lane->slot_mask = size - 1;
    memset(lane->slots, 0xFF, size * sizeof *lane->slots);
    for (int i = 0; i < lane->key_count; i++) {
        const Key *key = &lane->keys[i];
        if (key->parent < 0 || key->name_size < 0) continue;
        uint32_t slot = slot_of(lane, key->parent, key->name, key->name_size);
        while (lane->slots[slot] >= 0) slot = (slot + 1) & lane->slot_mask;
        lane->slots[slot] = (int16_t)i;
    }
    return 0;
}

/* Keep the columns, and the objects that they are in; those of the envelope must be there. */
static int set_columns(Lane *lane, PyObject *columns, PyObject *envelope, int closed) {
    Py_ssize_t count = PySequence_Fast_GET_SIZE(columns), keys = count + 2 + PyTuple_GET_SIZE(envelope);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *column = PySequence_Fast_GET_ITEM(columns, i);
        if (!PyTuple_Check(column) || PyTuple_GET_SIZE(column) != 5) {
            PyErr_SetString(PyExc_TypeError, "a column is (path or method, type, limit, missing, not_null)");
            return -1;
        }
        PyObject *where = PyTuple_GET_ITEM(column, 0);
        if (PyTuple_Check(where)) keys += PyTuple_GET_SIZE(where);
    }
    if (keys > INT16_MAX) {
        PyErr_SetString(PyExc_ValueError, "too many columns");
        return -1;
    }
    lane->keys = PyMem_Calloc((size_t)keys, sizeof(Key));
    lane->fields = PyMem_Calloc((size_t)keys, sizeof(Field));
    if (lane->keys == NULL || lane->fields == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    lane->count = (int)count;
    lane->key_count = lane->count + 1;
    lane->keys[lane->count] = (Key){.parent = -1, .kind = OBJECT, .next = -1, .first = -1};
    int inner = lane->count;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(envelope); i++) {
        inner = find_object(lane, PyTuple_GET_ITEM(envelope, i), inner);
        if (inner < 0) return -1;
        lane->keys[inner].not_null = 1;
    }
    lane->closed = closed ? inner : -1;
    for (int i = 0; i < lane->count; i++) {
        if (set_column(lane, i, PySequence_Fast_GET_ITEM(columns, i)) < 0) return -1;
    }
    return set_slots(lane);
}

static PyObject *lane_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *columns, *envelope;
    int closed;
    if (keywords != NULL && PyDict_GET_SIZE(keywords) > 0) {
        PyErr_SetString(PyExc_TypeError, "Lane takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "OO!p", &columns, &PyTuple_Type, &envelope, &closed)) return NULL;
    Lane *lane = (Lane *)type->tp_alloc(type, 0);
    if (lane == NULL) return NULL;
    columns = PySequence_Fast(columns, "columns are no sequence");
    int failed = columns == NULL || set_columns(lane, columns, envelope, closed) < 0;
    Py_XDECREF(columns);
    if (failed) Py_CLEAR(lane);
    return (PyObject *)lane;
}

static void lane_dealloc(Lane *lane) {
    PyTypeObject *type = Py_TYPE(lane);
    for (int i = 0; i < lane->key_count; i++) {
        PyMem_Free(lane->keys[i].name);
        Py_XDECREF(lane->keys[i].method);
        Py_XDECREF(lane->keys[i].missing);
    }
    PyMem_Free(lane->keys);
    PyMem_Free(lane->fields);
    PyMem_Free(lane->slots);
    PyMem_Free(lane->scratch);
    type->tp_free((PyObject *)lane);
    Py_DECREF(type);
}

PyDoc_STRVAR(encode_doc,
             "encode(records, values, start, rows)\n--\n\n"
             "Append the rows of the values from `start` on; return the index of the first that is not taken, or their number.\n"
             "The records are looked at only where a column has a method.");

static PyMethodDef METHODS[] = {
    {"encode", (PyCFunction)(void (*)(void))lane_encode, METH_FASTCALL, encode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)"Lane(columns, envelope, closed)\n--\n\n"
                        "Encodes plain records. Columns are (path or method, type, limit, missing, not_null), and no path is\n"
                        "the beginning of another; `missing` is what the row has, with its length, for a key that is not\n"
                        "there, or None; the objects of the path `envelope` must be there; `closed`: the last of them may\n"
                        "have no other keys."},
    {Py_tp_new, lane_new},
    {Py_tp_dealloc, lane_dealloc},
    {Py_tp_methods, METHODS},
    {0, NULL},
};

static PyType_Spec LANE = {.name = "kbatchd.encode._lane.Lane", .basicsize = sizeof(Lane), .flags = Py_TPFLAGS_DEFAULT, .slots = SLOTS};

static int add_lane(PyObject *module) {
    PyObject *type = PyType_FromSpec(&LANE);
    if (type == NULL) return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

static PyModuleDef_Slot MODULE_SLOTS[] = {{Py_mod_exec, add_lane}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, .m_name = "kbatchd.encode._lane", .m_doc = "The compiled lane of the row encoder.", .m_slots = MODULE_SLOTS};

PyMODINIT_FUNC PyInit__lane(void) { return PyModuleDef_Init(&MODULE); }
