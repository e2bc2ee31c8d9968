"""One file per family of transformers, called as the family's `model_type` ("xlm-roberta":
xlm_roberta.py), in which `export/family.py` finds it. Each defines `FAMILY`.
"""
