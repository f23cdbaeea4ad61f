"""People judge what models say: a web application for annotators, the quality of their answers, and what is learnt."""
