"""Training: the loop, its optimizer and averages, files of tensors, processes that work as one."""
