"""Figures from arrays and words alone, for trainers and `evaluate/` alike: one recall, one tie rule.

Ranks and recall of image-caption retrieval with intervals; BLEU, ROUGE-L and CIDEr-D equal to the
COCO tools without Java, METEOR where Java is; how diverse captions are. Nothing here knows a store
or a model.
"""
