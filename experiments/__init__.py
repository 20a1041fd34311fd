"""Questions put to jattn: the only place where models, data and training meet."""
