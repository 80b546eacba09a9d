"""How fast is SGDPlus, beside its peers and against its targets?"""
