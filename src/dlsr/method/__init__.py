"""The method of the paper, section 3. Tensors in, tensors out."""
