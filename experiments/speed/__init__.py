"""How fast jattn is: each row beside what it is compared with, in one process."""
