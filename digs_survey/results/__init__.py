"""The result columns, the dataset and tables that hold them, and their exports."""
