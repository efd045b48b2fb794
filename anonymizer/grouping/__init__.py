"""Groups of k alike records, as functions of numbers: features in, groups out."""
