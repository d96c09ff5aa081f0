/* A record and its row: the fields are read out of the value, or asked of the record, and put in the order of COPY. */

#pragma once

#include "column.h"

/* What the record has beside its value. */

/* Ask the record for what a column takes of it: a number, a text, bytes, or (kind, time), a time below 0 being none.
   0 when it is not taken: also what raises, since the Python encoders alone say what is wrong with a record. With an
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
static int read_beside(Encoder *encoder, PyObject *record) {
    for (int i = 0; i < encoder->count; i++) {
        if (encoder->keys[i].method != NULL && !ask_record(&encoder->keys[i], &encoder->fields[i], record)) return 0;
    }
    return 1;
}

/* What is in its value. */

/* Say where to look first for a name within an object: FNV-1a. */
static uint32_t slot_of(const Encoder *encoder, int object, const Byte *name, Py_ssize_t size) {
    uint32_t hash = 2166136261u ^ (uint32_t)object;
    for (Py_ssize_t i = 0; i < size; i++) hash = (hash ^ name[i]) * 16777619u;
    return (hash ^ hash >> 15) & encoder->slot_mask;
}

/* Return the index of a name within an object; -1: nobody wants it. The work does not grow with the columns. */
static int find_key(const Encoder *encoder, int object, const Byte *name, Py_ssize_t size) {
    for (uint32_t slot = slot_of(encoder, object, name, size);; slot = (slot + 1) & encoder->slot_mask) {
        int index = encoder->slots[slot];
        if (index < 0) return -1;
        const Key *key = &encoder->keys[index];
        if (key->parent == object && key->name_size == size && memcmp(name, key->name, (size_t)size) == 0) return index;
    }
}

/* Read the key of an object, whose text begins at p; set its index, or -1. A producer writes its keys in one order: the
   one at `guess` is compared first, and the guess corrected for the next record. */
static const Byte *read_key(Encoder *encoder, int object, const Byte *p, const Byte *end, int *guess, int *found) {
    int has_escapes;
    if (*guess >= 0) {
        const Key *key = &encoder->keys[*guess];
        if (end - p > key->name_size && p[key->name_size] == '"' && memcmp(p, key->name, (size_t)key->name_size) == 0) {
            *found = *guess;
            return p + key->name_size + 1;
        }
    }
    const Byte *start = p;
    p = skip_text(p, end, &has_escapes);
    if (p == NULL || has_escapes) return NULL;
    *found = find_key(encoder, object, start, p - start);
    if (*found >= 0) *guess = *found;
    return p + 1;
}

static const Byte *read_object(Encoder *encoder, int object, const Byte *p, const Byte *end, Py_ssize_t record_size);

/* Read the value at p into the key's field; of a key that is there twice, neither is taken. */
static const Byte *read_field(Encoder *encoder, int index, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    const Key *key = &encoder->keys[index];
    Field *field = &encoder->fields[index];
    if (field->state != ABSENT) return NULL;
    if (*p == 'n') {
        field->state = NULL_FIELD;
        return key->not_null ? NULL : skip_word(p, end, "null", 4);
    }
    if (key->kind == OBJECT) return read_object(encoder, index, p, end, record_size);
    return take_field(encoder, key, field, p, end, record_size);
}

/* Read the object at p into the fields of its keys, and of those of the objects in it; return its end. */
static const Byte *read_object(Encoder *encoder, int object, const Byte *p, const Byte *end, Py_ssize_t record_size) {
    int *guess = &encoder->keys[object].first, found;
    encoder->fields[object].state = PRESENT;
    if (*p != '{') return NULL;
    p = skip_blanks(p + 1);
    if (*p == '}') return p + 1;
    for (;;) {
        if (*p != '"') return NULL;
        p = read_key(encoder, object, p + 1, end, guess, &found);
        if (p == NULL) return NULL;
        p = skip_blanks(p);
        if (*p != ':') return NULL;
        p = skip_blanks(p + 1);
        if (found >= 0) {
            p = read_field(encoder, found, p, end, record_size);
            guess = &encoder->keys[found].next;
        } else {
            p = object == encoder->closed ? NULL : skip_value(p, end, 1);
        }
        if (p == NULL) return NULL;
        p = skip_blanks(p);
        if (*p == '}') return p + 1;
        if (*p != ',') return NULL;
        p = skip_blanks(p + 1);
    }
}

/* Read a whole record into the fields; 0 when it is not taken. */
static int read_record(Encoder *encoder, const Byte *p, Py_ssize_t size) {
    const Byte *end = p + size;
    for (int i = 0; i < encoder->key_count; i++) encoder->fields[i].state = ABSENT;
    encoder->scratch_used = 0;
    p = read_object(encoder, encoder->count, skip_blanks(p), end, size);
    return p != NULL && skip_blanks(p) == end;
}

/* Make the row of the fields; NULL without an exception when the record is not taken. */
static PyObject *make_row(Encoder *encoder) {
    Py_ssize_t size = 2;
    for (int i = 0; i < encoder->count; i++) {
        const Key *key = &encoder->keys[i];
        const Field *field = &encoder->fields[i];
        if (field->state == PRESENT) size += 4 + field->size + (key->kind == JSONB);
        else if (field->state == NULL_FIELD) size += 4;
        else if (key->missing != NULL) size += PyBytes_GET_SIZE(key->missing);
        else return NULL;
    }
    for (int i = encoder->count; i < encoder->key_count; i++) {
        if (encoder->keys[i].not_null && encoder->fields[i].state != PRESENT) return NULL;
    }
    PyObject *row = PyBytes_FromStringAndSize(NULL, size);
    if (row == NULL) return NULL;
    Byte *to = (Byte *)PyBytes_AS_STRING(row);
    put_big_endian(to, (uint64_t)encoder->count, 2);
    to += 2;
    for (int i = 0; i < encoder->count; i++) {
        const Field *field = &encoder->fields[i];
        if (field->state == PRESENT) {
            int version = encoder->keys[i].kind == JSONB;
            put_big_endian(to, (uint64_t)(field->size + version), 4);
            to += 4;
            if (version) *to++ = 1;
            memcpy(to, field->bytes, (size_t)field->size);
            to += field->size;
        } else if (field->state == NULL_FIELD) {
            put_big_endian(to, UINT64_MAX, 4);
            to += 4;
        } else {
            const PyObject *missing = encoder->keys[i].missing;
            memcpy(to, PyBytes_AS_STRING(missing), (size_t)PyBytes_GET_SIZE(missing));
            to += PyBytes_GET_SIZE(missing);
        }
    }
    return row;
}

/* Return the row of one record; NULL without an exception when it is not taken. `record`: NULL if nobody asks it. */
static PyObject *encode_record(Encoder *encoder, PyObject *value, PyObject *record) {
    if (!PyBytes_CheckExact(value) || PyBytes_GET_SIZE(value) > MAX_RECORD_BYTES) return NULL;
    int taken = read_record(encoder, (const Byte *)PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
    if (taken && record != NULL) taken = read_beside(encoder, record);
    PyObject *row = taken ? make_row(encoder) : NULL;
    if (encoder->out_of_memory) {
        encoder->out_of_memory = 0;
        PyErr_NoMemory();
    }
    return row;
}

/* Return the row of a record that is asked: its methods may be Python code, so what is used meanwhile is held. */
static PyObject *encode_asking(Encoder *encoder, PyObject *value, PyObject *records, Py_ssize_t at) {
    if (at >= PySequence_Fast_GET_SIZE(records)) {
        PyErr_SetString(PyExc_ValueError, "a column is fed by the record, and there are more values than records");
        return NULL;
    }
    PyObject *record = Py_NewRef(PySequence_Fast_GET_ITEM(records, at));
    Py_INCREF(value);
    PyObject *row = encode_record(encoder, value, record);
    for (int i = 0; i < encoder->count; i++) Py_CLEAR(encoder->keys[i].held);
    Py_DECREF(value);
    Py_DECREF(record);
    return row;
}
