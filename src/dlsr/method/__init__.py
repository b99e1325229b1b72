"""The method of the paper, section 3: tensors in, tensors out."""
