"""Models, heads, losses and prototypes: Cerberus, IDE, ARN, APR and CSSC, with their backbones."""
