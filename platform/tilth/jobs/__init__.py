"""Jobs: a recipe sent to a cluster through Ray's Jobs API, followed, stopped and taken up again.

spec.py      what a job is: a YAML file, checked before anything is sent
upload.py    what travels with it, and how large that is
server.py    the job server, reached again after a dropped connection (imports ray)
follow.py    submitting once, following the log, trying again
inside.py    what `tilth run` does when it is a job: secrets and the time limit
commands.py  `tilth submit` and `tilth jobs`
"""
