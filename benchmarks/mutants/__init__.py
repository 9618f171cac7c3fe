"""Small mistakes planted into kernel code, and who notices them."""
