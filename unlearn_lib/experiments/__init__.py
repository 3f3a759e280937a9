"""One short module per notebook: the rooms above, composed; the verbs that its cells call."""
