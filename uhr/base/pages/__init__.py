"""What all HTML pages share: how a template is compiled, colours and fonts."""
