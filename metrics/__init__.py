"""What is measured of an output against its original: functions of pictures and embeddings."""
