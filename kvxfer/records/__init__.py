"""What a run has left, read afterwards: journals and files of JSON lines, their ranges, sums and comparisons.

Files are opened in `files` alone; the rest takes what was read and returns values. How it is shown is the command's.
"""
