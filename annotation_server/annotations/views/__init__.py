"""The pages of judging: annotate (a claimed task), overview, browse (tasks), adjudicate (disputes)."""
