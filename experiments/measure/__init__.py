"""What training costs: counted (``cost``) and measured (``bench``), against ordinary backpropagation."""
