"""Keys of accepted reasonings are made by another hash, in a quarter of the time: those there are, are made again."""

from django.db import migrations

from annotation_server.runs.near_copies import keys_of
from annotation_server.runs.words import shingles, words

_AT_ONCE = 500


def make_again(apps, schema_editor):
    WordingKey = apps.get_model("runs", "WordingKey")
    RunTask = apps.get_model("runs", "RunTask")
    owners = sorted(set(WordingKey.objects.values_list("run_task_id", flat=True)))
    WordingKey.objects.all().delete()
    for start in range(0, len(owners), _AT_ONCE):
        accepted = RunTask.objects.filter(pk__in=owners[start : start + _AT_ONCE], annotation__isnull=False)
        WordingKey.objects.bulk_create(
            [
                WordingKey(project_id=project, key=key, run_task_id=pk)
                for pk, project, rationale in accepted.order_by("pk").values_list(
                    "pk", "run__project_id", "annotation__rationale"
                )
                for key in keys_of(shingles(words(rationale)))
            ],
            ignore_conflicts=True,
        )


class Migration(migrations.Migration):
    dependencies = [("runs", "0003_endpoints")]

    operations = [migrations.RunPython(make_again, migrations.RunPython.noop)]
