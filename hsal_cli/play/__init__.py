"""The page of `hsal play`, for this machine alone: whoever draws digits, or drops an image, watches the policy look."""
