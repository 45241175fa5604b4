"""``ArrayDataType``: the dtypes of tensors on the wire, and what carries them."""

from enum import IntEnum


class ArrayDataType(IntEnum):
    """Numbers of the protocol; the same in the torch and TensorFlow messages.

    ===================================  ===========  =======================
    dtype                                carried in   array
    ===================================  ===========  =======================
    FLOAT, HALF, BFLOAT16                float_val    float32
    DOUBLE                               double_val   float64
    COMPLEX64                            float_val    complex64, (re, im) pairs
    COMPLEX128                           double_val   complex128, pairs
    INT32, INT16, INT8, UINT8, UINT16    int_val      the same
    QINT32, QINT16, QINT8, QUINT8, ...   int_val      the same without Q
    BOOL                                 int_val      bool, from 0 and 1 only
    INT64                                int64_val    int64
    STRING, RESOURCE, VARIANT, INVALID   -            refused by torch models
    ===================================  ===========  =======================
    """

    DT_INVALID = 0
    DT_FLOAT = 1
    DT_DOUBLE = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 5
    DT_INT8 = 6
    DT_STRING = 7
    DT_COMPLEX64 = 8
    DT_INT64 = 9
    DT_BOOL = 10
    DT_QINT8 = 11
    DT_QUINT8 = 12
    DT_QINT32 = 13
    DT_BFLOAT16 = 14
    DT_QINT16 = 15
    DT_QUINT16 = 16
    DT_UINT16 = 17
    DT_COMPLEX128 = 18
    DT_HALF = 19
    DT_RESOURCE = 20
    DT_VARIANT = 21
