"""How facts come out when people ask for them: what is asked, how answers are judged, runs and reports."""
