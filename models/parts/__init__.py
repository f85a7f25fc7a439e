"""What methods are furnished with."""
