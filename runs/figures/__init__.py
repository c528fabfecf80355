"""From numbers to pictures, TensorBoard boards and the pages of experiments."""
