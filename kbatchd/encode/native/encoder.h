/* An encoder's memory: the columns it was made for, and the fields of the record that it is at. */

#pragma once

#include "tokens.h"

/* A numeric's head and its groups of four digits; no type of fixed width is larger. */
#define MAX_SMALL_BYTES (8 + 2 * (MAX_DIGITS / 4 + 2))

enum {
    BOOL, INT2, INT4, INT8, FLOAT4, FLOAT8, NUMERIC, TEXT, UUID, DATE, TIMESTAMP, TIMESTAMPTZ, JSON, JSONB, BYTEA,
    EPOCH_DATE, EPOCH,  /* times that are numbers */
    OBJECT              /* no column, but an object that columns are in */
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
    const Byte *bytes;     /* in the value, in the scratch, or `small` */
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
} Encoder;
