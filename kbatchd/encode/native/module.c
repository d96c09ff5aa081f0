/* The compiled encoder: a plain record's JSON to a row of PostgreSQL's binary COPY, in one pass, without Python objects.

   It takes only what is plain and what it is certain of; of anything else it says "not taken", and the Python encoders
   (rows.py) decide. So no error has a name here: a function that does not take what it finds returns NULL. What it takes
   becomes, byte for byte, the row that the Python encoders would make, but for two things whose value is the same: jsonb
   gets the value's own text, and a numeric with a scale the digits as they were written.

   What a column takes of the record beside its value (its key, its offset ...) is asked of the record by the name of its
   method, and is then taken as JSON's would be.

   Optional: without a compiler the package has no such module. Called by the row encoder in the worker's poll loop.

   tokens.h has what a value is made of, column.h what a column takes, record.h the record and its row; this file the
   module. They are one unit for the compiler: what is called in one place is compiled into it, and that is 5 % of a record.

   The bytes are hostile. A `bytes` object ends with a NUL that is not counted, so one byte at `end` may be looked at, and
   no token begins or goes on with a NUL; what looks at more compares with `end` first. Recursion is bounded by
   MAX_DEPTH, every number by MAX_DIGITS. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "record.h"

/* Room for unescaped texts that is kept from record to record. */
#define KEPT_SCRATCH_BYTES 65536

static const struct { const char *name; int kind; } TYPES[] = {
    {"bool", BOOL}, {"int2", INT2}, {"int4", INT4}, {"int8", INT8}, {"float4", FLOAT4}, {"float8", FLOAT8},
    {"numeric", NUMERIC}, {"text", TEXT}, {"varchar", TEXT}, {"uuid", UUID}, {"date", DATE}, {"timestamp", TIMESTAMP},
    {"timestamptz", TIMESTAMPTZ}, {"json", JSON}, {"jsonb", JSONB}, {"bytea", BYTEA},
    {"epoch date", EPOCH_DATE}, {"epoch", EPOCH},
};

static PyObject *encoder_encode(Encoder *encoder, PyObject *const *arguments, Py_ssize_t count) {
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
        PyObject *row = encoder->asks ? encode_asking(encoder, value, records, at) : encode_record(encoder, value, NULL);
        failed = row == NULL ? PyErr_Occurred() != NULL : PyList_Append(arguments[3], row) < 0;
        Py_XDECREF(row);
        if (row == NULL) break;
    }
    Py_XDECREF(values);
    Py_XDECREF(records);
    if (encoder->scratch_size > KEPT_SCRATCH_BYTES) {
        PyMem_Free(encoder->scratch);
        encoder->scratch = NULL;
        encoder->scratch_size = 0;
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
static int find_object(Encoder *encoder, PyObject *name, int parent) {
    Key *made = &encoder->keys[encoder->key_count];
    if (set_key(made, name, parent) < 0) return -1;
    for (int i = encoder->count; i < encoder->key_count; i++) {
        const Key *key = &encoder->keys[i];
        if (key->parent == parent && key->name_size == made->name_size && made->name_size >= 0
            && memcmp(key->name, made->name, (size_t)made->name_size) == 0) {
            PyMem_Free(made->name);
            made->name = NULL;
            return i;
        }
    }
    made->kind = OBJECT;
    return encoder->key_count++;
}

/* Return the object that a path's steps lead to, but for the last of them. */
static int find_parent(Encoder *encoder, PyObject *path, Py_ssize_t steps) {
    int object = encoder->count;
    for (Py_ssize_t i = 0; i < steps && object >= 0; i++) object = find_object(encoder, PyTuple_GET_ITEM(path, i), object);
    return object;
}

/* Keep one column: (path or method, type, limit, missing, not_null). */
static int set_column(Encoder *encoder, int index, PyObject *description) {
    Key *key = &encoder->keys[index];
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
        encoder->asks = 1;
        return 0;
    }
    Py_ssize_t last = PyTuple_GET_SIZE(where) - 1;
    int parent = find_parent(encoder, where, last);
    return parent < 0 ? -1 : set_key(key, PyTuple_GET_ITEM(where, last), parent);
}

/* Make the table of names; of two keys with one name in one object the first is found first. */
static int set_slots(Encoder *encoder) {
    uint32_t size = 4;
    while (size < 2 * (uint32_t)encoder->key_count) size *= 2;
    encoder->slots = PyMem_Malloc(size * sizeof *encoder->slots);
    if (encoder->slots == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    encoder->slot_mask = size - 1;
    memset(encoder->slots, 0xFF, size * sizeof *encoder->slots);
    for (int i = 0; i < encoder->key_count; i++) {
        const Key *key = &encoder->keys[i];
        if (key->parent < 0 || key->name_size < 0) continue;
        uint32_t slot = slot_of(encoder, key->parent, key->name, key->name_size);
        while (encoder->slots[slot] >= 0) slot = (slot + 1) & encoder->slot_mask;
        encoder->slots[slot] = (int16_t)i;
    }
    return 0;
}

/* Keep the columns, and the objects that they are in; those of the envelope must be there. */
static int set_columns(Encoder *encoder, PyObject *columns, PyObject *envelope, int closed) {
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
    encoder->keys = PyMem_Calloc((size_t)keys, sizeof(Key));
    encoder->fields = PyMem_Calloc((size_t)keys, sizeof(Field));
    if (encoder->keys == NULL || encoder->fields == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    encoder->count = (int)count;
    encoder->key_count = encoder->count + 1;
    encoder->keys[encoder->count] = (Key){.parent = -1, .kind = OBJECT, .next = -1, .first = -1};
    int inner = encoder->count;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(envelope); i++) {
        inner = find_object(encoder, PyTuple_GET_ITEM(envelope, i), inner);
        if (inner < 0) return -1;
        encoder->keys[inner].not_null = 1;
    }
    encoder->closed = closed ? inner : -1;
    for (int i = 0; i < encoder->count; i++) {
        if (set_column(encoder, i, PySequence_Fast_GET_ITEM(columns, i)) < 0) return -1;
    }
    return set_slots(encoder);
}

static PyObject *encoder_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *columns, *envelope;
    int closed;
    if (keywords != NULL && PyDict_GET_SIZE(keywords) > 0) {
        PyErr_SetString(PyExc_TypeError, "Encoder takes no keywords");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "OO!p", &columns, &PyTuple_Type, &envelope, &closed)) return NULL;
    Encoder *encoder = (Encoder *)type->tp_alloc(type, 0);
    if (encoder == NULL) return NULL;
    columns = PySequence_Fast(columns, "columns are no sequence");
    int failed = columns == NULL || set_columns(encoder, columns, envelope, closed) < 0;
    Py_XDECREF(columns);
    if (failed) Py_CLEAR(encoder);
    return (PyObject *)encoder;
}

static void encoder_dealloc(Encoder *encoder) {
    PyTypeObject *type = Py_TYPE(encoder);
    for (int i = 0; i < encoder->key_count; i++) {
        PyMem_Free(encoder->keys[i].name);
        Py_XDECREF(encoder->keys[i].method);
        Py_XDECREF(encoder->keys[i].missing);
    }
    PyMem_Free(encoder->keys);
    PyMem_Free(encoder->fields);
    PyMem_Free(encoder->slots);
    PyMem_Free(encoder->scratch);
    type->tp_free((PyObject *)encoder);
    Py_DECREF(type);
}

PyDoc_STRVAR(encode_doc,
             "encode(records, values, start, rows)\n--\n\n"
             "Append the rows of the values from `start` on; return the index of the first that is not taken, or their number.\n"
             "The records are looked at only where a column has a method.");

static PyMethodDef METHODS[] = {
    {"encode", (PyCFunction)(void (*)(void))encoder_encode, METH_FASTCALL, encode_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot SLOTS[] = {
    {Py_tp_doc, (void *)"Encoder(columns, envelope, closed)\n--\n\n"
                        "Encodes plain records. Columns are (path or method, type, limit, missing, not_null), and no path is\n"
                        "the beginning of another; `missing` is what the row has, with its length, for a key that is not\n"
                        "there, or None; the objects of the path `envelope` must be there; `closed`: the last of them may\n"
                        "have no other keys."},
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_methods, METHODS},
    {0, NULL},
};

static PyType_Spec ENCODER = {
    .name = "kbatchd.encode._native.Encoder", .basicsize = sizeof(Encoder), .flags = Py_TPFLAGS_DEFAULT, .slots = SLOTS};

static int add_encoder(PyObject *module) {
    PyObject *type = PyType_FromSpec(&ENCODER);
    if (type == NULL) return -1;
    int result = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return result;
}

static PyModuleDef_Slot MODULE_SLOTS[] = {{Py_mod_exec, add_encoder}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, .m_name = "kbatchd.encode._native", .m_doc = "The compiled encoder.", .m_slots = MODULE_SLOTS};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&MODULE); }
