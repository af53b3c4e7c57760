"""One file a step, one build function each: settings and upstream properties in, a step out."""
