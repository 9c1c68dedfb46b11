"""The paper's studies: what each one varies (`catalog`), its trainings (`plan`, `runner`), its table (`results`)."""
