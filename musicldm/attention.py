"""Former name of `musicldm.kernels.dot_product`."""

from musicldm.kernels.dot_product import attention as attention
